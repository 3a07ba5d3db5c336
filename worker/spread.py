"""One job on several devices: torchrun starts a trainer for each, and looks like one trainer to the worker.

torchrun forwards SIGTERM to its processes and ends them when one dies; its own exit code says only whether
all went well: the first process leaves its status in a file beside the job's.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

from app.embedded import tether
from worker.launch import Trainer

STATUS = ".status"  # what worker.training adds to the job file's name


def command(devices: int, job_file: Path) -> list[str]:
    """torchrun for this machine's `devices`, tied to the thread that starts it."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
    trainer = ["-m", "worker.training", "--job", str(job_file)]
    return tether.command([sys.executable, *torchrun, *trainer], SIGKILL)


class SpreadTrainer(Trainer):
    """Several processes that train one job; nothing of it is warm."""

    def __init__(self, devices: int, line: dict[str, Any]) -> None:
        self._job_file = Path(line["out"]) / "job.json"
        self._job_file.parent.mkdir(parents=True, exist_ok=True)
        self._job_file.write_text(json.dumps(line))
        super().__init__(command(devices, self._job_file))

    def begin(self, job: dict[str, Any]) -> None:
        """It has its job since it was started."""

    def end(self) -> int:
        code = super().end()
        status = self._job_file.with_name(self._job_file.name + STATUS)
        return int(status.read_text()) if code and status.exists() else code


def starter(devices: int, line: dict[str, Any]) -> Callable[[], Trainer]:
    """For `WarmTrainers.start`."""
    return lambda: SpreadTrainer(devices, line)
