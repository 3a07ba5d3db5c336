"""What some settings are made of: a length of time in seconds, a worker's label."""

from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, StringConstraints


def _seconds(value: object) -> object:
    """A bare number is seconds; pydantic alone would want ISO 8601."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Duration = Annotated[timedelta, BeforeValidator(_seconds)]
# What a worker is told apart by.
Label = Annotated[str, StringConstraints(to_lower=True, pattern=r"^[A-Za-z0-9][\w.:=/-]{0,62}$")]
