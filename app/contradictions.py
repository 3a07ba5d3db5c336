"""What fields of a recipe cannot be meant together, each refused with what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.hyperparameters import refuse

if TYPE_CHECKING:
    from app.recipe import Recipe


def refuse_contradictions(recipe: Recipe) -> None:
    """Raises pydantic's custom error, laid at the door of one field."""
    _check_batch(recipe)
    _check_schedule(recipe)
    _check_pairs(recipe)
    _check_sharding(recipe)
    given = (recipe.lora_alpha, recipe.lora_dropout, recipe.lora_targets)
    if recipe.lora_rank is None and given != ("auto", 0, "auto"):
        refuse("lora_rank", "other lora_… fields are given; LoRA needs lora_rank")


def _check_schedule(recipe: Recipe) -> None:
    if recipe.learning_rate != "auto" and recipe.learning_rate_multiplier != "auto":
        refuse("learning_rate_multiplier", "it scales the automatic learning_rate; give one of the two")
    if recipe.lr_scheduler_warmup_ratio is not None and recipe.lr_scheduler_warmup_steps not in (0, "auto"):
        refuse("lr_scheduler_warmup_ratio", "give it or lr_scheduler_warmup_steps, not both")
    warms_up = recipe.lr_scheduler_warmup_steps or recipe.lr_scheduler_warmup_ratio
    if recipe.lr_scheduler_type == "constant" and warms_up:
        refuse("lr_scheduler_type", "'constant' has no warm-up; use 'constant_with_warmup'")


def _check_pairs(recipe: Recipe) -> None:
    if recipe.beta is None:
        return
    if recipe.excess_length == "split":
        refuse("excess_length", "a preference pair cannot be split; use 'truncate', 'drop' or 'error'")
    if recipe.train_on_inputs:
        refuse("train_on_inputs", "both answers of a preference pair have one prompt: it teaches nothing")


def _check_sharding(recipe: Recipe) -> None:
    whole = {
        "lora_rank": recipe.lora_rank is not None,
        "optimizer": recipe.optimizer == "adafactor",
        "torch_compile": recipe.torch_compile,
    }
    for name, asked in whole.items():
        if asked and recipe.sharding == "full":
            refuse(name, "it does not go together with sharding 'full'; use 'none'")


def _check_batch(recipe: Recipe) -> None:
    micro, steps = recipe.train_batch_size, recipe.gradient_accumulation_steps
    total, devices = recipe.total_train_batch_size, recipe.num_devices
    if total == "auto":
        return
    if micro != "auto" and steps != "auto" and total != (product := micro * steps * devices):
        parts = f"{micro} x {steps} x {devices} = {product}"
        what = f"train_batch_size x gradient_accumulation_steps x num_devices = {parts}"
        refuse("total_train_batch_size", f"{total} is not {what}")
    for name, value in (("train_batch_size", micro), ("gradient_accumulation_steps", steps)):
        if value != "auto" and total % (value * devices):
            refuse("total_train_batch_size", f"{total} is not a multiple of {name} x num_devices")
