"""How good the model is, and whether to go on."""

import math
from collections.abc import Generator
from typing import Any

from worker.training.evaluate import evaluate, sample
from worker.training.events import Event
from worker.training.failure import NON_FINITE, Failure
from worker.training.prepare import Parts
from worker.training.pulse import Pulse

# A GradScaler finds its scale within a few skipped steps; after this many in a row it never will.
MAX_SKIPPED_IN_ROW = 32


def due_for_evaluation(parts: Parts) -> bool:
    """At every eval_steps and after the last step, once."""
    step, done = parts.progress.step, parts.progress.evaluations
    due = step % parts.plan.eval_steps == 0 or parts.plan.is_last(step)
    return bool(step) and due and not (done and done[-1]["step"] == step)


def evaluate_now(parts: Parts, pulse: Pulse) -> Generator[Event, None, bool]:
    """States the validation loss and the samples; returns whether this is a best that the recipe keeps.

    Raises Stopped, before anything is written down, when the process is asked to stop.
    """
    progress, device = parts.progress, parts.model.device
    epoch = parts.plan.epoch(progress.step)
    mean = progress.loss_sum / progress.loss_tokens if progress.loss_tokens else None
    row: dict[str, Any] = {"training_loss": mean, "epoch": epoch, "step": progress.step}
    is_best = False
    if parts.validation is not None:
        # One process alone may not leave while the others wait for its sums.
        beat = pulse.beat if device.world == 1 else pulse.tick
        said = evaluate(
            parts.model, parts.validation, parts.eval_size, parts.max_length, progress.step, epoch, beat
        )
        row |= {"loss": said.loss, "perplexity": said.perplexity, "accuracy": said.accuracy}
        row |= {f"reward_{name}": value for name, value in (said.rewards or {}).items()}
        is_best = _judge(parts, said.loss)
        yield said
    progress.evaluations.append({k: None if _is_odd(v) else v for k, v in row.items()})
    progress.loss_sum, progress.loss_tokens = 0.0, 0
    if parts.job.recipe.sample_prompts and (device.sharded or not device.rank):
        yield sample(parts.model, parts.encoder, parts.job.recipe, progress.step)
    return is_best and keeps_best(parts)


def keeps_best(parts: Parts) -> bool:
    """Whether the best checkpoint is published, not the last."""
    return parts.job.recipe.load_best_model_at_end or parts.job.recipe.early_stopping_patience is not None


def reason_to_end(parts: Parts) -> str | None:
    """Why no further step is to be taken: completed, early_stopping, max_runtime, or None."""
    progress, recipe = parts.progress, parts.job.recipe
    if parts.plan.is_last(progress.step):
        return "completed"
    if recipe.early_stopping_patience and progress.without_improvement >= recipe.early_stopping_patience:
        return "early_stopping"
    if recipe.max_runtime and progress.seconds >= recipe.max_runtime:
        return "max_runtime"
    return None


def refuse_non_finite(parts: Parts, loss: float, norm: float) -> None:
    """Raises Failure before the weights take harm. A GradScaler may skip a few steps first."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    if parts.optimization.scaler.is_enabled() and parts.progress.skipped_in_row < MAX_SKIPPED_IN_ROW:
        return
    what = f"The loss or its gradient is not a finite number at step {parts.progress.step + 1}."
    hint = "Try a lower learning_rate, more lr_scheduler_warmup_steps, or bf16 instead of fp16."
    raise Failure("non_finite", f"{what} {hint}", NON_FINITE)


def _judge(parts: Parts, loss: float | None) -> bool:
    progress, recipe = parts.progress, parts.job.recipe
    if loss is None or not math.isfinite(loss):
        return False
    if progress.best_loss is None or loss < progress.best_loss - recipe.early_stopping_min_delta:
        progress.best_loss, progress.best_step, progress.without_improvement = loss, progress.step, 0
        return True
    progress.without_improvement += len(progress.evaluations) >= recipe.early_stopping_warmup
    return False


def _is_odd(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
