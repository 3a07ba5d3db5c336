"""What is to be trained, put together from where it may be written: a recipe, a card, an earlier job, flags.

What is written later overrules what is written before it: a base (file, card or job), then `--set` and flags.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.terminal.client import Api, JsonObject
from app.terminal.outcome import Failure, usage

LONGEST = 1_000_000  # bytes of a recipe file
# Fields of a request to train; a file that has none of them holds hyperparameters alone.
BODY = {
    "model", "training_file", "validation_file", "suffix", "seed", "metadata", "refuse_on", "method",
    "hyperparameters", "from_checkpoint", "integrations", "priority", "requires",
}  # fmt: skip
SURE_SIGNS = BODY - {"seed"}  # a hyperparameter too
# Fields that say one thing in two ways: a change of one takes the other away.
RIVALS = (
    {"num_epochs", "max_steps"},
    {"learning_rate", "learning_rate_multiplier"},
    {"lr_scheduler_warmup_steps", "lr_scheduler_warmup_ratio"},
)
BATCHES = ("train_batch_size", "gradient_accumulation_steps", "total_train_batch_size", "num_devices")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def read_file(path: Path) -> JsonObject:
    """A request's fields, from JSON or YAML. Raises Failure."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise usage(f"--recipe: {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise usage(f"--recipe: {path} is not UTF-8.") from None
    if len(data) > LONGEST:
        raise usage(f"--recipe: {path} is larger than {LONGEST:,} bytes, and so no recipe.")
    found = _parsed(path, text)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise usage(f"--recipe: {path} holds no names with values.")
    found = {key: _numbers(value) for key, value in found.items()}
    if not SURE_SIGNS & found.keys():
        return {"hyperparameters": found}
    if unknown := sorted(found.keys() - BODY):
        raise usage(
            f"--recipe: {unknown[0]!r} is no field of a request; others stand below `hyperparameters`."
        )
    if not isinstance(found.get("hyperparameters", {}), dict):
        raise usage("--recipe: hyperparameters are names with values.")
    return found


def _parsed(path: Path, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> JsonObject:
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise usage(f"--recipe: {path} says {twice!r} twice.")
        return dict(pairs)

    if path.suffix.lower() == ".json":
        try:
            return json.loads(text, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise usage(f"--recipe: {path} is not JSON: {error}") from None
    import yaml

    class Strict(yaml.SafeLoader):
        """Plain data alone, and no name twice."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> JsonObject:
        return once(loader.construct_pairs(node, deep=True))

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader=Strict)  # noqa: S506  # derived from SafeLoader: makes plain data alone
    except (yaml.YAMLError, RecursionError) as error:
        raise usage(f"--recipe: {path} is not YAML: {' '.join(str(error).split())}") from None


def _numbers(value: Any) -> Any:
    """YAML 1.1 takes 2e-3 for a text."""
    if isinstance(value, dict):
        return {name: _numbers(inner) for name, inner in value.items()}
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def read_card(path: Path) -> tuple[JsonObject, list[str]]:
    """A request's fields from a model card, and what has to be said of it. Raises Failure."""
    from app import card

    try:
        with path.open("rb") as file:
            found = card.read(file.read(LONGEST).decode("utf-8-sig"))
    except OSError as error:
        raise usage(f"--card: {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise usage(f"--card: {path} is not UTF-8.") from None
    if not found.hyperparameters:
        what = 'a block "Training hyperparameters" with lines like `- learning_rate: 0.0005`'
        raise usage(f"--card: {path} has no recipe in it; it would be {what}.")
    remarks = [f"{said.name} {said.value}: {said.says}." for said in found.remarks]
    body: JsonObject = {"hyperparameters": found.hyperparameters}
    return body | ({"model": found.base_model} if found.base_model else {}), remarks


def like(api: Api, job_id: str) -> JsonObject:
    """The request that would make an earlier job again."""
    found = api.get(f"/v1/fine_tuning/jobs/{job_id}")
    own = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")
    told = found["hyperparameters"]
    # OpenAI's own are always told, with what was resolved for them; ours only where they were asked for.
    asked = {name: value for name, value in told.items() if name not in own}
    if not {"num_epochs", "max_steps", "training_steps"} & asked.keys():
        asked["n_epochs"] = told.get("n_epochs", "auto")
    if not set(BATCHES) & asked.keys():
        asked["batch_size"] = told.get("batch_size", "auto")
    if "learning_rate" not in asked and told.get("learning_rate_multiplier") not in (None, "auto", 1):
        asked["learning_rate_multiplier"] = told["learning_rate_multiplier"]
    if "beta" in told:
        asked["beta"] = told["beta"]
    body = {
        name: found[name]
        for name in ("model", "training_file", "validation_file", "suffix", "metadata", "seed")
    }
    body = {name: value for name, value in body.items() if value is not None}
    if found["priority"] != "normal":
        body["priority"] = found["priority"]
    if labels := found["requires"]["labels"]:  # its memory may have been reckoned, and is reckoned anew
        body["requires"] = {"labels": labels}
    return body | {"method": {"type": found["method"]["type"]}, "hyperparameters": asked}


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> JsonObject:
    """`base` with `changes`: what says the same by another name, or the same thing in another way, goes."""
    from app.hyperparameters import OPENAI_NAMES

    def name(key: str) -> str:
        return OPENAI_NAMES.get(key, key)

    given = {name(key) for key in changes}
    gone = set(given)
    for rivals in RIVALS:
        if rivals & given:
            gone |= rivals
    if {"total_train_batch_size", "num_devices"} & given:  # what the parts were is not known any more
        gone |= {"gradient_accumulation_steps"}
    if {"train_batch_size", "gradient_accumulation_steps"} <= given:
        gone |= {"total_train_batch_size"}
    return {key: value for key, value in base.items() if name(key) not in gone} | dict(changes)


def assignment(text: str) -> tuple[str, Any]:
    """`name=value` of --set; the value is JSON, or a word. Raises Failure."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not name or not equals:
        raise usage(f"--set: {text!r} sets nothing; write --set learning_rate=2e-3.")
    return name, _value(value.strip())


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        words = {"true": True, "false": False, "none": None}
        return words.get(text.lower(), float(text) if NUMBER.fullmatch(text) else text)


def assignments(texts: list[str], flags: Mapping[str, Any]) -> JsonObject:
    """What `--set` and the flags say together. Raises Failure where one says it twice."""
    from app.hyperparameters import OPENAI_NAMES

    found: JsonObject = {}
    written: dict[str, str] = {}
    pairs = [(name, value, f"--set {name}") for name, value in map(assignment, texts)]
    pairs += [
        (name, value, f"--{name.replace('_', '-')}") for name, value in flags.items() if value is not None
    ]
    for name, value, option in pairs:
        known = OPENAI_NAMES.get(name, name)
        if known in written:
            raise Failure(
                f"{written[known]} and {option} say the same thing; give one of them.", usage("").code
            )
        written[known], found[name] = option, value
    return found
