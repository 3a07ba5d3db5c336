"""Reading a recipe off a model card: the block "Training hyperparameters" that Trainer writes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from app.hyperparameters import RecipeError, canonical, optimizer_line
from app.recipe import Recipe

HEADING = "training hyperparameters"
LONGEST_VALUE = 1000
_WORDS: dict[str, object] = {"true": True, "false": False, "none": None}


@dataclass(frozen=True)
class Card:
    """`hyperparameters` under the recipe's own names; `ignored` are names on the card that no recipe has."""

    hyperparameters: dict[str, object]
    ignored: tuple[str, ...]


def read(text: str) -> Card:
    """What a card's block says, or a text that is nothing but its lines; values are not checked here."""
    found: dict[str, object] = {}
    ignored = []
    for line in _block(text.splitlines()):
        name, colon, value = line.strip().lstrip("-*").strip().partition(":")
        name, value = name.strip("` "), value.strip()[:LONGEST_VALUE]
        if not (colon and value and name.isidentifier() and name.isascii()):
            continue
        try:
            field = canonical(name, Recipe.model_fields)
            found |= optimizer_line(value) if field == "optimizer" else {field: _value(value)}
        except (
            RecipeError,
            ValueError,
        ):  # ValueError: betas that are no numbers
            ignored.append(name[:64])
    return Card(found, tuple(dict.fromkeys(ignored)))


def _block(lines: list[str]) -> Iterator[str]:
    """The lines below the heading up to the next one; all of them where there is no such heading."""
    titles = [line.strip("# ").lower() if line.startswith("#") else None for line in lines]
    if HEADING not in titles:
        yield from lines
        return
    first = titles.index(HEADING) + 1
    for line, title in zip(lines[first:], titles[first:], strict=True):
        if title is not None:
            return
        yield line


def _value(text: str) -> object:
    """`0.0005` is a number and `True` is true; a list is one of texts, and whatever else is text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
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
