"""What a trainer says, made safe to keep: an event whose every value has its type and fits a column.

A trainer runs models and data that others made, and one value that the database refuses would hold up every
heartbeat behind it. What is not an event of ours is a line of its log.
"""

import math
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from worker.training import events

LARGEST = 2**63 - 1  # of PostgreSQL's bigint
DEEPEST = 20  # nested lists and objects
_SHAPES = {kind: TypeAdapter(kind) for kind in events.KINDS.values()}
# PostgreSQL's text has no NUL, and UTF-8 no half of a surrogate pair.
_UNSTORABLE = {0: "\N{REPLACEMENT CHARACTER}"} | dict.fromkeys(
    range(0xD800, 0xE000), "\N{REPLACEMENT CHARACTER}"
)


def hear(line: bytes) -> events.Event:
    """The event that a line states. Raises ValueError on anything else."""
    try:
        event = events.parse(line)
        said = {name: _storable(value, DEEPEST) for name, value in vars(event).items()}
        heard: events.Event = _SHAPES[type(event)].validate_python(said, strict=False)
    except (ValidationError, PydanticSerializationError, RecursionError, TypeError, AttributeError) as error:
        raise ValueError(f"not an event of the trainer: {type(error).__name__}") from None
    return heard


def text(line: bytes, longest: int) -> str:
    """A line of a log as text that any column takes."""
    return line[:longest].decode("utf-8", "replace").translate(_UNSTORABLE).rstrip()


def _storable(value: Any, depth: int) -> Any:
    if depth == 0:
        raise ValueError("nested too deeply")
    match value:
        case str():
            return value.translate(_UNSTORABLE)
        case bool() | None:
            return value
        case int() if abs(value) > LARGEST:
            raise ValueError("an integer too large to keep")
        case float() if not math.isfinite(value):
            return None  # as `events.line` says it
        case dict():
            return {_storable(name, depth - 1): _storable(item, depth - 1) for name, item in value.items()}
        case list():
            return [_storable(item, depth - 1) for item in value]
        case _:
            return value
