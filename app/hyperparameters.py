"""What a caller writes: which names mean which field of the recipe, and how a wrong one is refused."""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Never

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

# OpenAI's own hyperparameters keep OpenAI's ranges; larger values go through the card's names.
OPENAI_RANGES = {"n_epochs": (1, 50), "batch_size": (1, 256)}
OPENAI_NAMES = {
    "n_epochs": "num_epochs",
    "batch_size": "total_train_batch_size",
    "training_steps": "max_steps",
}
# What people write for our names, coming from other tools. They are suggested, never accepted in silence.
OTHER_TOOLS = {
    "epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "lr": "learning_rate",
    "warmup_steps": "lr_scheduler_warmup_steps",
    "warmup_ratio": "lr_scheduler_warmup_ratio",
    "per_device_train_batch_size": "train_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "fp16": "mixed_precision_training",
    "bf16": "mixed_precision_training",
    "optim": "optimizer",
    "context_length": "max_length",
    "max_seq_length": "max_length",
    "block_size": "max_length",
    "early_stopping": "early_stopping_patience",
    "lora": "lora_rank",
    "lora_r": "lora_rank",
    "lora_target_modules": "lora_targets",
    "checkpoint_steps": "save_steps",
    "keep_last": "save_total_limit",
    "patience": "early_stopping_patience",
    "grad_clip": "max_grad_norm",
    "gpus": "num_devices",
}


class RecipeError(ValueError):
    """A recipe that cannot be meant. `field` is the name as the caller wrote it, `code` one of
    unknown_parameter, invalid_value, contradictory_value, unsupported_method."""

    def __init__(self, field: str, message: str, code: str) -> None:
        super().__init__(message)
        self.field, self.message, self.code = field, message, code


def canonical(key: str, fields: Collection[str]) -> str:
    """The field that `key` names. Raises RecipeError with the nearest right name."""
    name = OPENAI_NAMES.get(key, key)
    if name in fields:
        return name
    names = [*fields, *OPENAI_NAMES]
    near = OTHER_TOOLS.get(key.lower()) or next(
        iter(difflib.get_close_matches(key.lower(), names, 1, 0.6)), None
    )
    hint = f" Did you mean '{near}'?" if near else ""
    raise RecipeError(
        key,
        f"Unknown hyperparameter '{key}'.{hint} It is refused because a knob ignored trains another model.",
        "unknown_parameter",
    )


def check_openai_range(key: str, value: object) -> None:
    """Raises RecipeError when one of OpenAI's names has a value outside OpenAI's range."""
    if key not in OPENAI_RANGES or value == "auto":
        return
    low, high = OPENAI_RANGES[key]
    if type(value) is not int or not low <= value <= high:
        more = OPENAI_NAMES[key]
        message = f"'{key}' must be 'auto' or an integer from {low} to {high}; use '{more}' for others."
        raise RecipeError(key, message, "invalid_value")


def optimizer_line(line: str) -> dict[str, object]:
    """A card's 'Adam with betas=(…) and epsilon=…' and 'Use adamw_torch with …' are both AdamW."""
    found: dict[str, object] = {}
    if betas := re.search(r"betas=\(\s*([\d.e-]+)\s*,\s*([\d.e-]+)\s*\)", line):
        found |= {"adam_beta1": float(betas[1]), "adam_beta2": float(betas[2])}
    if epsilon := re.search(r"epsilon=([\d.]+(?:e[+-]?\d+)?)", line):
        found["adam_epsilon"] = float(epsilon[1])
    is_adam = re.match(r"(?:use\s+)?adamw?(?:_torch(?:_fused)?)?(?=$|\s+with\b)", line.strip(), re.IGNORECASE)
    return found | {"optimizer": "adamw" if is_adam else line.strip()}


def understood(values: Mapping[str, object]) -> dict[str, object]:
    """Fields as meant: a card's optimizer line taken apart, what pairs need where nothing is said."""
    found = dict(values)
    if isinstance(line := found.pop("optimizer", None), str):
        found = {**optimizer_line(line), **found}
    elif line is not None:
        found["optimizer"] = line
    if found.get("beta") is not None:
        found = {"excess_length": "truncate", **found}
        # Dropout is noise in both answers' likelihoods, larger than their difference at the start.
        found["dropout"] = 0.0 if found.get("dropout", "auto") == "auto" else found["dropout"]
    return found


def refuse(field: str, why: str) -> Never:
    """For the recipe's validators: a contradiction, laid at the door of one field."""
    raise PydanticCustomError("contradictory_value", "{why}", {"field": field, "why": why})


def first_problem(error: ValidationError, written: Mapping[str, str]) -> RecipeError:
    """The first of pydantic's problems, named as the caller wrote the field."""
    problems = error.errors(include_url=False, include_input=False)
    first = problems[0]
    if first["type"] == "contradictory_value":
        field = str(first["ctx"]["field"])
        name = written.get(field, field)
        return RecipeError(name, f"'{name}': {first['ctx']['why']}.", "contradictory_value")
    field = str(first["loc"][0])
    name = written.get(field, field)
    # A field with "auto" is a union: pydantic tells one problem for each branch.
    reasons = [
        re.sub("^(Input|String|Tuple) should (be )?", "", p["msg"]) for p in problems if p["loc"][0] == field
    ]
    return RecipeError(name, f"'{name}' must be {' or '.join(dict.fromkeys(reasons))}.", "invalid_value")
