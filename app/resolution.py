"""Every "auto" of a recipe as a number: for the trainer before it begins, and for a dry run. Pure."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from app.recipe import Batch, Recipe

DEFAULT_EPOCHS = 3
# Tokens of an example at most where nothing is asked for: longer ones cost memory few data sets are worth.
USUAL_LENGTH = 1024
# GPT-2's size and the rate that suits it; smaller models take larger steps.
REFERENCE_PARAMETERS, REFERENCE_RATE = 124e6, 5e-5
# Tokens of a micro-step the device likes: beyond it speed no longer rises (CPU: measured on two cores).
TOKENS_PER_MICRO_STEP = {"cpu": 4_096, "cuda": 32_768}
Kind = Literal["cpu", "cuda"]


def epochs(recipe: Recipe) -> float:
    return DEFAULT_EPOCHS if recipe.num_epochs == "auto" else recipe.num_epochs


def max_length(recipe: Recipe, longest: int) -> int:
    """Tokens of an example at most, for a model that attends to `longest`; what is asked for may be more."""
    return min(longest, USUAL_LENGTH) if recipe.max_length == "auto" else recipe.max_length


def rate(recipe: Recipe, parameters: int) -> float:
    """The peak learning rate."""
    return recipe.learning_rate if recipe.learning_rate != "auto" else usual_rate(recipe, parameters)


def usual_rate(recipe: Recipe, parameters: int) -> float:
    """What "auto" means for a model of that size."""
    usual = min(1e-3, max(1e-5, REFERENCE_RATE * math.sqrt(REFERENCE_PARAMETERS / max(1, parameters))))
    factor = 1.0 if recipe.learning_rate_multiplier == "auto" else recipe.learning_rate_multiplier
    return usual * factor * (10 if recipe.lora_rank else 1) * (0.1 if recipe.method == "dpo" else 1)


def warmup(recipe: Recipe, total_steps: int) -> int:
    """Warm-up in steps, the ratio resolved too."""
    if recipe.lr_scheduler_warmup_ratio is not None:
        return math.ceil(recipe.lr_scheduler_warmup_ratio * total_steps)
    if recipe.lr_scheduler_warmup_steps == "auto":
        return math.ceil(0.05 * total_steps)
    return recipe.lr_scheduler_warmup_steps


def beta(recipe: Recipe) -> float | None:
    """How strongly preference pairs hold the model to what it was; None for supervised training."""
    return 0.1 if recipe.beta == "auto" else recipe.beta


def lora_alpha(recipe: Recipe) -> float:
    """The numerator of the update's scale."""
    return 2 * (recipe.lora_rank or 0) if recipe.lora_alpha == "auto" else recipe.lora_alpha


@dataclass(frozen=True)
class Course:
    """How many steps there are, and between how many something is due."""

    per_epoch: int
    total: int
    eval_steps: int
    save_steps: int


def course(recipe: Recipe, examples: int, batch: int) -> Course:
    """For so many training examples, of which a step takes `batch`."""
    per_epoch = math.ceil(examples / batch)
    return Course(
        per_epoch=per_epoch,
        total=recipe.max_steps or math.ceil(epochs(recipe) * per_epoch),
        eval_steps=per_epoch if recipe.eval_steps == "auto" else recipe.eval_steps,
        save_steps=per_epoch if recipe.save_steps == "auto" else recipe.save_steps,
    )


def resolve(
    recipe: Recipe, batch: Batch, course: Course, *, parameters: int, length: int, devices: int
) -> dict[str, Any]:
    """The whole recipe, as it is reported."""
    multiplier = recipe.learning_rate_multiplier
    return recipe.model_dump(mode="json") | {
        "num_epochs": epochs(recipe),
        "train_batch_size": batch.micro,
        "gradient_accumulation_steps": math.ceil(math.ceil(batch.total / devices) / batch.micro),
        "total_train_batch_size": batch.total,
        "eval_batch_size": batch.micro if recipe.eval_batch_size == "auto" else recipe.eval_batch_size,
        "num_devices": devices,
        # Several devices decide by their memory, which is known once they are there.
        "sharding": "none" if devices == 1 else recipe.sharding,
        "learning_rate": rate(recipe, parameters),
        "learning_rate_multiplier": 1 if multiplier == "auto" else multiplier,
        "lr_scheduler_warmup_steps": warmup(recipe, course.total),
        "max_length": length,
        "eval_steps": course.eval_steps,
        "save_steps": course.save_steps,
        "beta": beta(recipe),
        "lora_alpha": lora_alpha(recipe) if recipe.lora_rank else None,
    }
