"""How urgent a job is: a name on the wire, a number in the row, so that the database can order by it."""

from typing import Literal

Priority = Literal["low", "normal", "high"]
NUMBERS: dict[Priority, int] = {"low": -1, "normal": 0, "high": 1}
HIGH = NUMBERS["high"]
# What a key needs beside `jobs:write` to ask for `high`, which makes other people's jobs give way.
HIGH_SCOPE = "jobs:high"


def name(number: int) -> Priority:
    if number == 0:
        return "normal"
    return "high" if number > 0 else "low"
