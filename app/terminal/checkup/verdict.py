"""What a check of the installation found: one sentence, and how to mend what is wrong."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "warn", "fail"]


@dataclass(frozen=True)
class Verdict:
    """`note`: not looked at, or not needed now; `warn`: works, but may hurt; `fail`: does not work."""

    about: str
    level: Level
    says: str
    mend: str | None = None


Check = Callable[[], Iterator[Verdict]]


def heard(about: str, check: Check) -> list[Verdict]:
    """The verdicts of a check; one that breaks is itself a verdict, and keeps none of the others from being
    made."""
    found: list[Verdict] = []
    try:
        found.extend(check())
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        found.append(Verdict(about, "fail", f"cannot be looked at ({what})"))
    return found
