"""One job on several devices: torchrun starts a trainer for each, and looks like one trainer to the worker.

torchrun forwards SIGTERM to its processes and ends them when one dies; its own exit code says only whether
all went well: the first process to end leaves its status in a file beside the job's.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL
from typing import Any

from app.embedded import tether
from worker.cells import Cell
from worker.launch import Trainer

LONG = 24 * 3600  # seconds to save in: whoever asks them to stop has a patience of his own
STATUS = ".status"  # what worker.training adds to the job file's name


def command(devices: int, job_file: Path) -> list[str]:
    """torchrun for this machine's `devices`."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
    # By number: in a cell no name is resolved, and the loopback is all of the network.
    torchrun += ["--local-addr", "127.0.0.1", "--shutdown-timeout", str(LONG)]
    trainer = ["-m", "worker.training", "--job", str(job_file)]
    return [sys.executable, *torchrun, *trainer]


class SpreadTrainer(Trainer):
    """Several processes that train one job, from the moment they are started; nothing of it is warm."""

    def __init__(self, devices: int, line: dict[str, Any], cell: Cell | None = None) -> None:
        self._job_file = Path(line["out"]) / "job.json"
        self._job_file.parent.mkdir(parents=True, exist_ok=True)
        self._job_file.write_text(json.dumps(line | {"confine": cell.limits(line)} if cell else line))
        self._status().unlink(missing_ok=True)
        torchrun = command(devices, self._job_file)
        # Tied to the thread that starts it, by its cell or else by the tether.
        held = replace(cell, several=True) if cell else None
        super().__init__(torchrun if held else tether.command(torchrun, SIGKILL), held)

    def begin(self, job: dict[str, Any]) -> None:
        """It has its job since it was started."""

    def end(self) -> int:
        code = super().end()
        status = self._status()
        return int(status.read_text()) if code and status.exists() else code

    def _status(self) -> Path:
        return self._job_file.with_name(self._job_file.name + STATUS)


def starter(devices: int, line: dict[str, Any], cell: Cell | None = None) -> Callable[[], Trainer]:
    """For `WarmTrainers.start`."""
    return lambda: SpreadTrainer(devices, line, cell)
