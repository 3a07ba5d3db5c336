"""A dry run: what a job would be and do, from counts, formulas and what earlier jobs took. Makes nothing."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from app import footprint, forecast, machine, resolution
from app.forecast import Measured, Work
from app.recipe import Recipe
from app.resolution import Kind
from app.tables import JsonObject
from app.weights import Size
from app.wire import seconds

FEWEST_TOKENS = 8  # trained; fewer fail (worker.training.data)
FEW_TOKENS = 1_000
FAR_HIGH, FAR_LOW = 10, 100  # times the rate that "auto" would take


@dataclass(frozen=True)
class Place:
    """The device that trained last, or this machine where none has yet. `memory` None: not known."""

    kind: Kind
    device: str | None
    memory: int | None


def place(past: Sequence[Measured]) -> Place:
    if past:
        newest = past[0]
        kind: Kind = "cpu" if newest.device.startswith("cpu") else "cuda"
        return Place(kind, newest.device, newest.device_memory_bytes)
    if machine.has_gpu():
        return Place("cuda", None, None)
    return Place("cpu", None, machine.memory_bytes())


@dataclass(frozen=True)
class Look:
    """What was counted: of the training file, and of the validation file if there is one."""

    train: JsonObject
    validation: JsonObject | None

    @property
    def exact(self) -> bool:
        return bool(self.train["exact"] and (self.validation is None or self.validation["exact"]))


@dataclass(frozen=True)
class Shares:
    """Examples and tokens to train on, examples to evaluate on. `exact` False: tokens depend on which rows
    are held out, and that the trainer draws."""

    examples: int
    tokens: float
    trained_tokens: float
    validation_examples: int
    exact: bool


def shares(recipe: Recipe, look: Look) -> Shares:
    counts = look.train["counts"]
    examples, tokens, trained = counts["examples"], counts["tokens"], counts["trained_tokens"]
    if look.validation is not None:
        return Shares(examples, tokens, trained, look.validation["counts"]["examples"], True)
    share, rows = recipe.validation_split, look.train["with_examples"]
    if not share or not examples:
        return Shares(examples, tokens, trained, 0, True)
    if rows == 1:
        kept = round(examples * (1 - share))
    elif rows == examples:
        kept = examples - round(rows * share)
    else:
        kept = round(examples * (1 - round(rows * share) / rows))
    left = kept / examples
    return Shares(kept, tokens * left, trained * left, examples - kept, exact=False)


def rehearse(
    recipe: Recipe, source: str, look: Look, size: Size, past: Sequence[Measured], start: datetime | None
) -> JsonObject:
    """Everything that hangs on counts and on the model's size."""
    here = place(past)
    shared = shares(recipe, look)
    length = look.train["max_length"]
    found: JsonObject = {
        "exact": look.exact and shared.exact,
        "examples": shared.examples,
        "validation_examples": shared.validation_examples,
        "total_tokens": round(shared.tokens),
        "trained_tokens": round(shared.trained_tokens),
        "counts": look.train["counts"],
        "too_long_share": _share(look.train["counts"]),
        "parameters": size.parameters,
    }
    if not shared.examples:
        return found | {"warnings": [_nothing_to_learn(recipe)]}
    limit = resolution.TOKENS_PER_MICRO_STEP[here.kind]
    batch = recipe.batch(shared.examples, shared.tokens / shared.examples, limit)
    course = resolution.course(recipe, shared.examples, batch.total)
    resolved = resolution.resolve(
        recipe, batch, course, parameters=size.parameters, length=length, devices=recipe.num_devices
    )
    wide = shared.tokens / shared.examples if recipe.packing else look.train["longest"]
    memory = _memory(recipe, size, here, max(batch.micro * wide, look.train["longest"]))
    tokens = shared.tokens * course.total / course.per_epoch
    work = Work(source, recipe.lora_rank is not None, tokens, size.parameters)
    lasting, basis = forecast.seconds(work, past), forecast.speed(work, past)
    finish = None if start is None or lasting is None else start + timedelta(seconds=lasting)
    return found | {
        "recipe": resolved,
        "steps_per_epoch": course.per_epoch,
        "total_steps": course.total,
        "memory": memory,
        "estimated_seconds": None if lasting is None else math.ceil(lasting),
        "estimated_basis": basis and basis[1],
        "estimated_start": seconds(start),
        "estimated_finish": seconds(finish),
        "warnings": list(_warnings(recipe, look, shared, size, resolved, memory, course.total)),
    }


def _share(counts: JsonObject) -> float:
    return round(counts["too_long"] / counts["rows"], 4) if counts["rows"] else 0.0


def _memory(recipe: Recipe, size: Size, here: Place, tokens: float) -> JsonObject:
    needed = footprint.estimate(recipe, size, here.kind, tokens)
    parts = {f"{name}_bytes": value for name, value in asdict(needed).items() if name != "rest"}
    return {
        "needed_bytes": needed.total,
        **parts,
        "device": here.device,
        "available_bytes": here.memory,
        "fits": None if here.memory is None else needed.total <= here.memory,
    }


def warning(level: str, code: str, message: str, param: str | None = None) -> JsonObject:
    return {"level": level, "code": code, "message": message, "param": param}


def _nothing_to_learn(recipe: Recipe) -> JsonObject:
    param = "validation_split" if recipe.validation_split else None
    return warning("error", "no_trainable_tokens", "There is no example to train on.", param)


def _warnings(
    recipe: Recipe,
    look: Look,
    shared: Shares,
    size: Size,
    resolved: JsonObject,
    memory: JsonObject,
    total_steps: int,
) -> Any:
    warmup, batch, rate = (
        resolved[name] for name in ("lr_scheduler_warmup_steps", "total_train_batch_size", "learning_rate")
    )
    usual = resolution.usual_rate(recipe, size.parameters)
    if warmup and warmup >= total_steps:
        told = (
            f"The warm-up takes {warmup:,} steps of {total_steps:,}: the peak learning rate is never reached."
        )
        yield warning("warn", "warmup_too_long", told, "hyperparameters.lr_scheduler_warmup_steps")
    if batch > shared.examples:
        told = f"A step takes {batch:,} examples, and there are {shared.examples:,}: an epoch is one step."
        yield warning("warn", "batch_larger_than_file", told, "hyperparameters.total_train_batch_size")
    if rate > FAR_HIGH * usual or rate * FAR_LOW < usual:
        told = f"The learning rate {rate:.2g} is far from the {usual:.2g} that suits a model of this size."
        yield warning("warn", "unusual_learning_rate", told, "hyperparameters.learning_rate")
    yield from _about_data(recipe, look, shared)
    if memory["fits"] is False:
        needed, there = memory["needed_bytes"] / 1e9, memory["available_bytes"] / 1e9
        told = (
            f"It needs about {needed:.1f} GB and the device has {there:.1f}. Lower max_length, set"
            " gradient_checkpointing, or train with lora_rank."
        )
        yield warning("warn", "out_of_memory", told, "model")


def _about_data(recipe: Recipe, look: Look, shared: Shares) -> Any:
    counts, trained = look.train["counts"], shared.trained_tokens
    if trained < FEWEST_TOKENS:
        yield warning("error", "no_trainable_tokens", "There is (almost) nothing to learn in the file.")
    elif trained < FEW_TOKENS:
        yield warning("warn", "few_tokens", f"There are only {trained:,.0f} tokens to learn from.")
    if counts["too_long"] and recipe.excess_length == "error":
        told = f"{counts['too_long']:,} rows are longer than max_length, which excess_length makes an error."
        yield warning("error", "rows_too_long", told, "hyperparameters.excess_length")
    elif counts["too_long"] and recipe.excess_length != "split":
        told = f"{counts['too_long']:,} rows are longer than max_length and lose their ends or are left out."
        yield warning("warn", "rows_too_long", told, "hyperparameters.max_length")
    if counts["empty"]:
        told = f"Of {counts['empty']:,} rows nothing is learned: there is no answer, or it is cut away."
        yield warning("warn", "empty_rows", told, "training_file")
    if look.train["has_chats"] and not look.train["has_template"]:
        told = "The model has no chat template; a plain one (`User:`, `Assistant:`) is used and published."
        yield warning("warn", "no_chat_template", told, "model")
    needs = [name for name in ("early_stopping_patience", "load_best_model_at_end") if getattr(recipe, name)]
    if needs and not shared.validation_examples:
        told = f"'{needs[0]}' needs a validation file or a validation_split that holds at least one example."
        yield warning("error", "contradictory_value", told, f"hyperparameters.{needs[0]}")
