"""The base of every JSON body: an unknown key is refused by name, with the nearest right one."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

# Enough for the schema of an answer, and far from where Python's recursion ends, which would be a crash.
MAX_DEPTH = 64


class Body(BaseModel):
    """A key that is null counts as absent, as the SDK sends it for an explicit None."""

    model_config = ConfigDict(extra="forbid", strict=True)

    # Whether its strings go to PostgreSQL, which has no NUL.
    stored: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for key in values:
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, 1, 0.6)
                hint = f" Did you mean '{near[0]}'?" if near else ""
                raise PydanticCustomError(
                    "unknown_parameter",
                    "Unknown parameter '{key}'.{hint} Refused, since what is ignored in silence misleads.",
                    {"key": str(key)[:64], "hint": hint},
                )
        if _depth(values) > MAX_DEPTH:
            raise PydanticCustomError("too_deep", "Nested more than {most} levels deep.", {"most": MAX_DEPTH})
        for text in _strings(values):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise PydanticCustomError("not_text", "A string holds half of a surrogate pair.")
            if cls.stored and "\0" in text:
                raise PydanticCustomError("not_text", "A string holds NUL, which cannot be stored.")
        return {key: value for key, value in values.items() if value is not None}


def _depth(value: Any) -> int:
    """How many levels of lists and objects, counted up to one more than are allowed."""
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        level = [item for item in level if isinstance(item, dict | list)]
        depth += bool(level)
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth


def _strings(value: Any) -> Iterator[str]:
    """Every name and every string in it."""
    match value:
        case str():
            yield value
        case dict():
            for name, item in value.items():
                yield from _strings(name)
                yield from _strings(item)
        case list():
            # Token ids: a prompt may hold thousands, none of them a string.
            for item in value:
                if not isinstance(item, int):
                    yield from _strings(item)
