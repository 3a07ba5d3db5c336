"""How long a thread of a matrix product that has nothing to do looks for more before it sleeps.

Asleep at once they cost a quiet machine a fifth of its speed; awake for longer, a busy one two thirds, for
they keep from their processors whoever has work. docs/performance.md has figures. The OpenMP library of torch
reads it once, when torch is loaded.
"""

import time
from collections.abc import MutableMapping
from pathlib import Path

NAME = "GOMP_SPINCOUNT"
ALONE = 50_000  # nobody else wants a processor: two to three milliseconds
BESIDE = 20_000  # a millisecond
# A trainer of the service has API, database and generator beside it: tiny-gpt2 on 2 cores at a load of 6
# trained 200 to 500 tokens/s with threads that never sleep, and 2,500 to 3,300 so.
SERVED = 1_000

LOOKS, PAUSE = 3, 0.01  # seconds


def settle(environment: MutableMapping[str, str]) -> None:
    """Say it for this process, where nobody has."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault(NAME, str(BESIDE if has_company() else ALONE))


def has_company(load: Path = Path("/proc/loadavg")) -> bool:
    """Whether somebody else is running just now; where that is not told, it is assumed."""
    for _ in range(LOOKS):
        try:
            running = int(load.read_text().split()[3].partition("/")[0])
        except (OSError, IndexError, ValueError):
            return True
        if running > 1:  # one is this process
            return True
        time.sleep(PAUSE)
    return False
