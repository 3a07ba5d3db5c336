"""Reading a recipe off a model card: the block "Training hyperparameters" that Trainer writes.

What of it has no meaning here, or another one, is told and never dropped in silence. Values are not checked:
a job, or its dry run, refuses them by name.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from app.hyperparameters import RecipeError, canonical, optimizer_line
from app.recipe import Recipe

HEADING = re.compile(r"training\s+hyper[\s-]?parameters", re.IGNORECASE)
# Possessive: whatever is pasted, a line is read once from left to right.
LINE = re.compile(r"(?:[-*+]\s++)?[*`]*+([A-Za-z]\w*+)[*`]*+\s*+:[*`\s]*+(.*)", re.ASCII)
BASE_MODEL = re.compile(r"base_model:\s*(.*)")
LONGEST_NAME, LONGEST_VALUE = 64, 1000  # characters
WORDS: dict[str, object] = {"true": True, "false": False, "none": None}
# Lines that change nothing of what is learned.
FOLLOWS = {
    "total_eval_batch_size": "follows from eval_batch_size",
    "distributed_type": "how the work was spread over devices does not change the result",
}
PRECISIONS = {"native amp": "Native AMP", "fp16": "fp16", "bf16": "bf16", "no": "no", "auto": "auto"}


@dataclass(frozen=True)
class Remark:
    """A line that was not taken as it stands. `changes`: whether the result may be another one for it."""

    name: str
    value: str
    says: str
    changes: bool


@dataclass
class Card:
    """`hyperparameters` under the recipe's own names; `base_model` is what the head of the card names."""

    base_model: str | None = None
    hyperparameters: dict[str, object] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def remark(self, name: str, value: object, says: str, *, changes: bool = True) -> None:
        self.remarks.append(Remark(name, str(value), says, changes))

    def ignore(self, name: str, value: str, says: str, *, changes: bool = True) -> None:
        """Nothing of the line was taken."""
        self.remark(name, value, says, changes=changes)
        if name not in self.ignored:
            self.ignored.append(name)


def read(text: str) -> Card:
    """What a card's block says, or a text that is nothing but its lines."""
    lines = text.removeprefix("\ufeff").splitlines()
    head, rest = _parted(lines)
    card = Card(_base_model(head))
    for name, value in _said(card, rest).items():
        _take(card, name, value)
    _spread(card)
    _agree(card)
    return card


def _parted(lines: list[str]) -> tuple[list[str], list[str]]:
    """The head, between two lines of dashes at the top, and the rest."""
    if lines and lines[0].strip() == "---":
        for at, line in enumerate(lines[1:], 1):
            if line.strip() == "---":
                return lines[1:at], lines[at + 1 :]
    return [], lines


def _base_model(head: list[str]) -> str | None:
    """Of a list of several the first."""
    for at, line in enumerate(head):
        if match := BASE_MODEL.fullmatch(line):
            value = match[1].strip()
            if not value and head[at + 1 :] and head[at + 1].lstrip().startswith("- "):
                value = head[at + 1].lstrip().removeprefix("- ").strip()
            return value.strip("\"'")[:256] or None
    return None


def _said(card: Card, lines: list[str]) -> dict[str, str]:
    """Names and values of the block; of one that is said twice the last value."""
    found: dict[str, str] = {}
    for line in _block(lines):
        match = LINE.fullmatch(line.strip())
        if match is None or not (value := match[2].strip().removesuffix("**").strip("` ")[:LONGEST_VALUE]):
            continue
        name = match[1][:LONGEST_NAME]
        if found.get(name, value) != value:
            card.remark(name, found[name], f"is said again, and then as {value}, which is taken")
        found[name] = value
    return found


def _block(lines: list[str]) -> Iterator[str]:
    """The lines below the heading up to the next one; all of them where there is no such heading."""
    titles = [line.strip("# ") if line.startswith("#") else None for line in lines]
    first = next((at for at, title in enumerate(titles, 1) if title and HEADING.match(title)), None)
    if first is None:
        yield from lines
        return
    for line, title in zip(lines[first:], titles[first:], strict=True):
        if title is not None:
            return
        yield line


def _take(card: Card, name: str, value: str) -> None:
    if name in FOLLOWS:
        card.ignore(name, value, FOLLOWS[name], changes=False)
        return
    try:
        known = canonical(name, Recipe.model_fields)
    except RecipeError:
        card.ignore(name, value, "is no hyperparameter here, and was left out")
        return
    if known == "optimizer":
        _take_optimizer(card, value)
    elif known == "mixed_precision_training":
        _take_precision(card, value)
    elif known == "lr_scheduler_type":
        # Some versions print the enumeration's name: SchedulerType.COSINE.
        card.hyperparameters[known] = value.rpartition(".")[2].lower()
    else:
        card.hyperparameters[known] = _value(value)


def _value(text: str) -> object:
    """`0.0005` is a number and `True` is true; a list is one of texts, and whatever else is text."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if text[0] + text[-1] == "[]":
        return [part.strip(" \"'") for part in text[1:-1].split(",") if part.strip()]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _take_optimizer(card: Card, value: str) -> None:
    """`Adam with betas=…`, or `Use OptimizerNames.ADAMW_TORCH with betas=… and optimizer_args=…`."""
    named, _, rest = value.partition("optimizer_args=")
    named = re.sub(r"\s*\band\s*$|^use\s+", "", named, flags=re.IGNORECASE)
    named = re.sub(r"^OptimizerNames\.", "", named, flags=re.IGNORECASE)
    word = named.partition(" ")[0].lower()
    if rest.strip() and not rest.strip().lower().startswith("no additional"):
        card.remark("optimizer_args", rest.strip(), "cannot be given here, and was left out")
    try:
        read = optimizer_line(named)
    except ValueError:  # betas that are no numbers
        card.ignore("optimizer", value, "cannot be read; AdamW is taken")
        return
    if word in ("adafactor", "sgd"):  # Trainer prints betas for every optimizer, used or not
        read = {"optimizer": word}
    elif read["optimizer"] != "adamw":
        variant = (
            "is a variant of AdamW; the plain one is taken"
            if "adam" in word
            else "is not offered; AdamW is taken"
        )
        card.remark("optimizer", word, variant)
        read["optimizer"] = "adamw"
    card.hyperparameters |= read


def _take_precision(card: Card, value: str) -> None:
    known = PRECISIONS.get(value.lower())
    if known is None and value.lower().startswith("apex"):
        known = "fp16"
        card.remark("mixed_precision_training", value, "is no more; torch.amp with fp16 is taken")
    if known is None:
        card.ignore("mixed_precision_training", value, "is not offered; `auto` is taken")
    else:
        card.hyperparameters["mixed_precision_training"] = known


def _spread(card: Card) -> None:
    """As many examples a step on one device as on the card's several, whatever this machine has."""
    found = card.hyperparameters
    devices = found.get("num_devices")
    if not isinstance(devices, int) or devices < 2:
        return
    del found["num_devices"]
    micro, steps = found.get("train_batch_size"), found.pop("gradient_accumulation_steps", 1)
    if isinstance(micro, int) and isinstance(steps, int):
        found.setdefault("total_train_batch_size", micro * steps * devices)
    says = f"one device takes as many examples a step here; set num_devices to {devices} to spread them"
    card.ignore("num_devices", str(devices), says, changes=False)


def _agree(card: Card) -> None:
    """Warm-ups as Trainer means them."""
    found = card.hyperparameters
    steps = found.get("lr_scheduler_warmup_steps")
    if (
        isinstance(steps, float) and 0 < steps < 1
    ):  # newer versions take a share of all steps by the same name
        del found["lr_scheduler_warmup_steps"]
        found["lr_scheduler_warmup_ratio"] = steps
        card.remark("lr_scheduler_warmup_steps", steps, "is read as a share of all steps", changes=False)
    elif steps and "lr_scheduler_warmup_ratio" in found:
        ratio = found.pop("lr_scheduler_warmup_ratio")
        card.remark("lr_scheduler_warmup_ratio", ratio, "gives way to lr_scheduler_warmup_steps")
    if found.get("lr_scheduler_type") == "constant":
        for name in ("lr_scheduler_warmup_steps", "lr_scheduler_warmup_ratio"):
            if value := found.pop(name, None):
                card.remark(name, value, "has no meaning for a constant rate, there neither", changes=False)
