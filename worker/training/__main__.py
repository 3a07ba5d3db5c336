"""`python -m worker.training`: the one way a model is trained, for the worker, a person and the benchmark.

stdout carries events and nothing else, one JSON object a line; what libraries say goes to stderr.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

from worker.training import spinning


def die_with_parent() -> None:
    """SIGKILL when the parent ends, so that no trainer outlives its supervisor. First of all.

    Not SIGTERM: a checkpoint that nobody reports is none, and one that hangs in C would never hear it.
    """
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended in between, so the signal will never come
        sys.exit(75)


def main(status: Path | None) -> int:
    """Runs one job; returns the exit status, and leaves it in `status` where several processes run it."""
    spinning.settle(os.environ)  # before torch is loaded
    # Libraries print where they like. Only `say` may write to the real stdout.
    events_out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    from worker.training import run

    return run.run(sys.argv[1:], events_out, status)


if __name__ == "__main__":
    spread = "LOCAL_RANK" in os.environ  # torchrun is the parent
    if "--wait" in sys.argv or spread:
        die_with_parent()
    shared = (
        Path(sys.argv[sys.argv.index("--job") + 1] + ".status") if spread and "--job" in sys.argv else None
    )
    code = main(shared)
    sys.stderr.flush()
    # Threads of torch may hang at shutdown, and everything that matters is on disk.
    os._exit(code)
