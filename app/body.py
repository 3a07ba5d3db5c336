"""The base of every JSON body: an unknown key is refused by name, with the nearest right one."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Body(BaseModel):
    """A key that is null counts as absent, as the SDK sends it for an explicit None."""

    model_config = ConfigDict(extra="forbid", strict=True)

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
        if not _is_text(values):
            raise PydanticCustomError("not_text", "A string holds NUL or half of a surrogate pair.")
        return {key: value for key, value in values.items() if value is not None}


def _is_text(value: Any) -> bool:
    """Whether every string in it can be kept: PostgreSQL has no NUL, UTF-8 no lone surrogate."""
    match value:
        case str():
            return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
        case dict():
            return all(_is_text(name) and _is_text(item) for name, item in value.items())
        case list():
            # Token ids: a prompt may hold thousands, none of them a string.
            return all(isinstance(item, int) or _is_text(item) for item in value)
        case _:
            return True
