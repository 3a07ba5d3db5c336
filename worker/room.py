"""Whether the disk has room for what a job is going to write: told before its first step, not hours later."""

import math
import shutil
from pathlib import Path

from app.footprint import OPTIMIZER
from app.recipe import Recipe
from app.tables import JsonObject
from app.weights import Size, measure

# The newest two stay (worker.order), and a third is written while they do.
CHECKPOINTS = 3


class NoRoom(Exception):
    """The disk is too small for this job; the message has the numbers."""


def least(recipe: Recipe, size: Size) -> int:
    """Bytes without which the job cannot end: its checkpoints, each all weights and the optimizer's state.

    The model takes none: it is made of links to the last checkpoint's files.
    """
    if recipe.lora_rank:  # a checkpoint holds the weights merged, perhaps in half precision, and the adapter
        trained, weights = size.adapter(recipe.lora_rank, recipe.lora_targets), 2 * size.parameters
    else:
        trained, weights = size.parameters, 0
    checkpoint = weights + (4 + OPTIMIZER[recipe.optimizer]) * trained
    saves = CHECKPOINTS
    if recipe.save_steps == "auto" and isinstance(recipe.num_epochs, int | float):
        saves = max(1, min(saves, math.ceil(recipe.num_epochs)))
    return int(saves * checkpoint)


def check(line: JsonObject) -> None:
    """Raises NoRoom. A job that has checkpoints goes on with whatever there is: to fail it would end it."""
    if line["resume"]:
        return
    try:
        size = measure(Path(line["model"]))
    except (OSError, ValueError, KeyError, TypeError):
        return  # the trainer says what is wrong with it
    recipe = {
        key: tuple(value) if isinstance(value, list) else value for key, value in line["recipe"].items()
    }
    needed, folder = least(Recipe.model_validate(recipe), size), Path(line["out"])
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if free < needed:
        raise NoRoom(
            f"Too little free disk: the checkpoints of this job need {needed:,} bytes, {free:,} are free."
            " Delete files, models or checkpoints and make the job again."
        )
