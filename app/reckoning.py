"""What a job is reckoned to take of a device's memory, when it is made: before anything of it was counted.

Its micro-steps are taken to be as wide as they may become, or as its file is long. docs/scaling.md says what
workers with a budget do with it.
"""

from functools import lru_cache
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import catalogue, footprint, resolution, weights
from app.recipe import Recipe
from app.resolution import Kind
from app.settings import Settings
from app.storage import Store
from app.tables import Worker
from app.weights import Size


@lru_cache(64)
def _measured(folder: Path) -> Size:
    return weights.measure(folder)


def size(source: str, settings: Settings, store: Store) -> Size | None:
    """A model's size, read once; None where it does not lie here, or is none that can be measured."""
    try:
        here = not source.startswith("store:") or store.place(source.removeprefix("store:")) is not None
        return _measured(catalogue.locate(source, settings, store)) if here else None
    except (OSError, ValueError, KeyError):
        return None


def kind(session: Session) -> Kind:
    """What the workers train on, as far as they have said."""
    gpu = select(Worker.id).where(Worker.labels.contains(["gpu"])).limit(1)
    return "cpu" if session.scalar(gpu) is None else "cuda"


def memory(recipe: Recipe, model: Size | None, file_bytes: int, kind: Kind) -> int | None:
    """Bytes. A token is at least one byte of the file."""
    if model is None:
        return None
    length = resolution.USUAL_LENGTH if recipe.max_length == "auto" else recipe.max_length
    wide = resolution.TOKENS_PER_MICRO_STEP[kind]
    if recipe.train_batch_size != "auto":
        wide = recipe.train_batch_size * length
    elif recipe.total_train_batch_size != "auto":
        wide = min(wide, recipe.total_train_batch_size * length)
    return footprint.estimate(recipe, model, kind, min(max(wide, length), max(1, file_bytes))).total
