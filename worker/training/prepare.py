"""From a job to what its loop needs: data encoded, model loaded, every "auto" resolved, state restored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from app import resolution
from app.dataset import Chat, Preference, read
from app.encoding import Encoder
from app.recipe import Recipe
from worker.training import checkpoint, data, device, lora, model, placement
from worker.training.batches import order
from worker.training.checkpoint import Progress, Saver
from worker.training.data import Encodings, Share
from worker.training.events import Event, Notice, Prepared
from worker.training.failure import Failure
from worker.training.job import Job
from worker.training.model import Model
from worker.training.optim import Optimization
from worker.training.pulse import Pulse
from worker.training.reference import Reference, weights_digest

if TYPE_CHECKING:
    from peft import PeftModel

# What may differ between two attempts at the same job: it changes speed or reporting, not the mathematics.
FREE = {
    "train_batch_size", "gradient_accumulation_steps", "eval_batch_size", "num_devices", "max_runtime",
    "max_step_time", "save_steps", "save_total_limit", "sample_prompts", "sample_max_tokens", "torch_compile",
    "gradient_checkpointing", "packing", "sharding",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Which examples a step takes, and at which steps something is due. Steps count from 1."""

    examples: int
    seed: int
    total: int  # examples per step
    steps_per_epoch: int
    total_steps: int
    eval_steps: int
    save_steps: int

    def indices(self, step: int) -> list[int]:
        """The examples of the step after `step` steps; the last step of an epoch takes what is left."""
        epoch, at = divmod(step, self.steps_per_epoch)
        chosen = order(self.examples, self.seed, epoch)[at * self.total : (at + 1) * self.total]
        return [int(i) for i in chosen]

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch

    def is_last(self, step: int) -> bool:
        return step >= self.total_steps


@dataclass
class Parts:
    """What the loop works with."""

    job: Job
    recipe: dict[str, Any]  # resolved
    plan: Plan
    encoder: Encoder
    train: Share
    validation: Share | None
    max_length: int
    eval_size: int
    model: Model
    adapted: PeftModel | None
    optimization: Optimization
    progress: Progress
    saver: Saver
    template: str | None  # the chat template that training brought, where the model has none


def prepare(job: Job, pulse: Pulse) -> Iterator[Event | Parts]:
    """Yields notices, then Prepared, then the parts."""
    place = device.choose(job.recipe)
    if place.refused:
        yield Notice("warn", "precision_unavailable", place.refused)
    if job.recipe.num_devices != place.world:
        message = (
            f"{job.recipe.num_devices} devices asked for, {place.world} at hand; the result is the same."
        )
        yield Notice("warn", "devices_unavailable", message)
    model.inspect(job.model)
    encoder = Encoder.load(job.model)
    max_length = _max_length(job)
    # One process encodes, the others then find it done.
    if place.rank:
        place.barrier(pulse.tick)
    encoded, held = _encode(job, encoder, max_length, pulse)
    if not place.rank:
        place.barrier(pulse.tick)
    weights = None
    if job.recipe.method == "dpo":
        # One process alone may not leave while the others wait for its sums.
        beat = pulse.beat if place.world == 1 else pulse.tick
        weights = weights_digest(job.model, beat)
        reference = Reference(job, weights, place, encoder.end, max_length, beat)
        encoded = yield from _with_reference(reference, encoded)
        held = (yield from _with_reference(reference, held)) if held else None
        del reference  # and the model in it
        place.free()
    train, validation = _shares(job, encoded, held)
    batch = _batch(job.recipe, train, place)
    plan = _plan(job.recipe, len(train), batch.total)
    fingerprint = _fingerprint(job.recipe, encoded, held, weights, batch.total)
    source, progress, notices = checkpoint.choose(job.resume, fingerprint)
    yield from notices
    progress.micro = min(progress.micro or batch.micro, batch.micro, job.fits or batch.micro)

    place.seed(job.recipe.seed)
    folder = job.model if job.recipe.lora_rank or source is None else source
    network = model.load(folder, job.recipe, place, stay=place.world > 1)
    parameters = sum(p.numel() for p in network.parameters())
    shards = placement.place(network, job.recipe, parameters, place)
    place = replace(place, sharded=shards is not None)
    adapted = lora.adapt(network, job.recipe) if job.recipe.lora_rank else None
    trained = Model(network, place, job.recipe)
    trained.end = encoder.end
    for path in trained.prepare(job.recipe):
        yield Notice("warn", f"{path}_unavailable", f"{path} is not supported here; it is off.")
    peak = resolution.rate(job.recipe, parameters)
    held_here = shards.parameters if shards else trained.parameters()
    optimization = Optimization(held_here, job.recipe, peak, plan.total_steps, place.scaler(), shards)
    if source is not None:
        if adapted:
            lora.restore(adapted, source)
        checkpoint.restore_optimization(source, optimization)

    resolved = resolution.resolve(
        job.recipe,
        batch,
        resolution.course(job.recipe, len(train), batch.total),
        parameters=parameters,
        length=max_length,
        devices=place.world,
    ) | {"packing": trained.packing, "sharding": "full" if shards else "none"}
    tokens, trained_tokens = train.total()
    yield Prepared(
        examples=len(train),
        trained_tokens=trained_tokens,
        total_tokens=tokens,
        validation_examples=len(validation) if validation else 0,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        counts=encoded.counts,
        recipe=resolved,
        device=place.name,
        precision=place.precision,
        parameters=parameters,
        device_memory_bytes=place.capacity(),
    )
    yield Parts(
        job=job,
        recipe=resolved,
        plan=plan,
        encoder=encoder,
        train=train,
        validation=validation,
        max_length=max_length,
        eval_size=int(resolved["eval_batch_size"]),
        model=trained,
        adapted=adapted,
        optimization=optimization,
        progress=progress,
        saver=Saver(job.out / "checkpoints", job.keep),
        template=None if encoder.has_template or not _is_chat(job) else encoder.template,
    )


def _encode(job: Job, encoder: Encoder, max_length: int, pulse: Pulse) -> tuple[Encodings, Encodings | None]:
    cache = job.cache_folder
    train = data.encode(job.data, job.format, encoder, job.recipe, max_length, cache, pulse.beat, job.columns)
    if job.validation is None:
        return train, None
    form, columns = job.validation_format, job.validation_columns
    return train, data.encode(
        job.validation, form, encoder, job.recipe, max_length, cache, pulse.beat, columns
    )


def _with_reference(reference: Reference, encodings: Encodings) -> Generator[Event, None, Encodings]:
    for stated in reference.give(encodings):
        if isinstance(stated, Encodings):
            encodings = stated
        else:
            yield stated
    return encodings


def _shares(job: Job, encoded: Encodings, held: Encodings | None) -> tuple[Share, Share | None]:
    train, validation = data.split(encoded, 0 if held else job.recipe.validation_split, job.recipe.seed)
    if held is not None:
        validation, _ = data.split(held, 0, 0)
    if not len(train):
        raise Failure(
            "no_trainable_tokens", "validation_split leaves no example to train on.", param="validation_split"
        )
    if len(validation):
        return train, validation
    for name in ("early_stopping_patience", "load_best_model_at_end"):
        if getattr(job.recipe, name):
            message = (
                f"'{name}' needs a validation file or a validation_split that holds at least one example."
            )
            raise Failure("contradictory_value", message, param=name)
    return train, None


def _max_length(job: Job) -> int:
    limit = model.longest(model.config_of(job.model))
    length = resolution.max_length(job.recipe, limit)
    if length > limit:
        message = f"'max_length' is {length:,}, but the model attends to {limit:,} tokens at most."
        raise Failure("invalid_value", message, param="max_length")
    return length


def _batch(recipe: Recipe, train: Share, place: device.Device) -> Any:
    tokens, _ = train.total()
    return recipe.batch(len(train), tokens / len(train), place.tokens_per_micro_step)


def _plan(recipe: Recipe, examples: int, total: int) -> Plan:
    course = resolution.course(recipe, examples, total)
    return Plan(
        examples=examples,
        seed=recipe.seed,
        total=total,
        steps_per_epoch=course.per_epoch,
        total_steps=course.total,
        eval_steps=course.eval_steps,
        save_steps=course.save_steps,
    )


def _fingerprint(
    recipe: Recipe, encoded: Encodings, held: Encodings | None, weights: str | None, total: int
) -> str:
    # Without what is None: a field that a later release adds makes no checkpoint foreign.
    said = recipe.model_dump(mode="json", exclude=FREE, exclude_none=True)
    known = [said, encoded.key, held.key if held else None, weights, total]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _is_chat(job: Job) -> bool:
    return isinstance(next(read(job.data, job.format, job.columns), None), Chat | Preference)
