"""One job after the other in one group of processes: `torchrun -m tests.training.several JOBS OUT`.

To start a group takes seconds, to train a tiny model a fraction of one. JOBS holds a JSON object of names and
jobs; rank 0 leaves the events of each in OUT. In one named "fp16" the second process's part of the gradients
overflows in the second step. A job named "cramped" comes last: its second process is out of
memory in the middle of the second step, and the trainer's own `run` says what becomes of it.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from worker.training import device, events, loop, run
from worker.training.job import Job
from worker.training.model import Model
from worker.training.optim import Optimization
from worker.training.pulse import Pulse


def main(jobs: Path, out: Path) -> None:
    torch.set_num_threads(1)
    real, clip, calls = device.choose, Optimization.clip, []

    def overflowing(self: Optimization) -> float:
        calls.append(1)
        if len(calls) == 2 and os.environ["RANK"] == "1":
            self.gradients()[-1].fill_(torch.inf)
        return clip(self)

    for name, line in json.loads(jobs.read_text()).items():
        if name == "cramped":
            leave(cramped(jobs, out, line))
        # fp16 is refused on a CPU, where it is slow but no different.
        device.choose = (lambda recipe: replace(real(recipe), precision="fp16")) if name == "fp16" else real
        Optimization.clip = overflowing if name == "fp16" else clip  # type: ignore[method-assign]
        said = [events.line(event) for event in loop.train(Job.from_json(json.dumps(line)), Pulse())]
        if os.environ["RANK"] == "0":
            (out / f"{name}.jsonl").write_text("\n".join(said))
    leave(0)


def cramped(jobs: Path, out: Path, line: dict[str, Any]) -> int:
    """The exit status of a process whose sibling has too little memory."""
    learn, calls = Model.learn, []

    def learned(self: Model, batch: Any, scale: float) -> Any:
        calls.append(scale)
        if os.environ["RANK"] == "1" and len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return learn(self, batch, scale)

    Model.learn = learned  # type: ignore[method-assign]
    job = out / "cramped.json"
    if os.environ["RANK"] == "0":
        job.write_text(json.dumps(line))
    torch.distributed.barrier()
    with (out / f"cramped-{os.environ['RANK']}.jsonl").open("w") as stream:
        return run.run(["--job", str(job)], stream, out / "cramped.status")


def leave(code: int) -> None:
    """As the trainer does: nothing of torch may hang at the end."""
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
