"""Checkpoints: everything a job needs to go on, in a folder that can also be served.

`Progress` is the named record of what must survive a crash, beside weights and optimizer. The data position
is its step: the order of an epoch follows from seed and epoch alone, and from it what each step takes.
"""

import json
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.training import manifest
from worker.training.events import Notice, Saved
from worker.training.optim import Optimization

OPTIMIZER, PROGRESS = "optimizer.safetensors", "progress.json"


@dataclass
class Progress:
    """Where a job stands. Of what is not in here, nothing is missed after a crash."""

    step: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0  # spent training, over all attempts
    micro: int = 0  # examples per micro-step that fit into memory; 0: not yet known
    skipped_in_row: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    without_improvement: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    loss_sum: float = 0.0  # over trained tokens, or pairs, since the last evaluation, for the card
    loss_tokens: int = 0  # or pairs
    last_loss: float | None = None
    fingerprint: str = ""  # of data and recipe; another one cannot be resumed from here

    def advance(self, loss: float, over: int, trained: int, seconds: float, updated: bool) -> None:
        """One step further. `loss` is the sum over what its mean is over: `trained` tokens, or pairs."""
        self.step += 1
        self.seconds += seconds
        self.trained_tokens += trained
        self.skipped_in_row = 0 if updated else self.skipped_in_row + 1
        if math.isfinite(loss):
            self.last_loss = loss / over
            self.loss_sum += loss
            self.loss_tokens += over


Snapshot = Callable[[Path], None]


class Saver:
    """Writes checkpoints in a thread of its own, one at a time, each whole or not at all."""

    def __init__(self, folder: Path, keep: int | None) -> None:
        """`keep`: newest checkpoints to keep beside the best; None: delete nothing."""
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Saved] | None = None

    def save(
        self, write: Snapshot, progress: Progress, metrics: dict[str, float], best: bool, final: bool
    ) -> list[Saved]:
        """Begins a save of what `write` has already copied; returns the former one, waiting for it."""
        done = self.wait()
        self._folder.mkdir(parents=True, exist_ok=True)
        manifest.sweep(self._folder)
        facts = Progress(**json.loads(json.dumps(asdict(progress))))
        self._pending = self._thread.submit(self._write, write, facts, metrics, best, final)
        return done

    def done(self) -> list[Saved]:
        """The save that has ended since the last call. Raises what stopped it."""
        return self.wait() if self._pending is not None and self._pending.done() else []

    def wait(self) -> list[Saved]:
        """The save under way, once it has ended. Raises what stopped it."""
        pending, self._pending = self._pending, None
        return [] if pending is None else [pending.result()]

    def _write(
        self, write: Snapshot, progress: Progress, metrics: dict[str, float], best: bool, final: bool
    ) -> Saved:
        path = self._folder / f"step-{progress.step}"
        temporary = self._folder / f".saving-{path.name}"
        try:
            temporary.mkdir()
            write(temporary)
            (temporary / PROGRESS).write_text(json.dumps(asdict(progress), allow_nan=False))
            digest, size = manifest.seal(temporary, {"step": progress.step})
            manifest.commit(temporary, path)
        except BaseException:
            manifest.sweep(self._folder)
            raise
        if self._keep is not None:
            manifest.prune(self._folder, self._keep, progress.best_step)
        return Saved(progress.step, str(path), digest, size, metrics, best, final)


def choose(folders: tuple[Path, ...], fingerprint: str) -> tuple[Path | None, Progress, list[Notice]]:
    """The newest whole checkpoint of this very job, and a notice for each one that is not."""
    notices = []
    for folder in folders:
        try:
            digest = manifest.verify(folder)
            progress = Progress(**json.loads((folder / PROGRESS).read_text()))
        except (manifest.Damaged, OSError, ValueError, TypeError) as error:
            notices.append(_damaged(folder, str(error)))
            continue
        if progress.fingerprint != fingerprint:
            notices.append(_foreign(folder))
            continue
        message = f"Resuming from step {progress.step}."
        data = {"step": progress.step, "manifest_sha256": digest}
        return folder, progress, [*notices, Notice("info", "resumed", message, data)]
    if folders:
        notices.append(
            Notice("warn", "no_checkpoint", "No checkpoint can be used; starting from the beginning.")
        )
    return None, Progress(fingerprint=fingerprint), notices


def _damaged(folder: Path, why: str) -> Notice:
    message = f"Checkpoint {folder.name} is damaged ({why}); trying the one before."
    return Notice("error", "checkpoint_corrupt", message, {"path": str(folder), "why": why})


def _foreign(folder: Path) -> Notice:
    message = f"Checkpoint {folder.name} is of other data or another recipe; it cannot be resumed."
    return Notice("error", "checkpoint_foreign", message, {"path": str(folder)})


def save_optimization(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Optimizer slots, and schedule and scaler beside them in the header."""
    save_file(tensors, folder / OPTIMIZER, {"facts": json.dumps(facts)})


def restore_optimization(folder: Path, optimization: Optimization) -> None:
    """Read on the CPU first, so that resuming needs no more GPU memory than a fresh start."""
    with safe_open(folder / OPTIMIZER, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    optimization.restore(load_file(folder / OPTIMIZER), facts)


def copy_to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, with tensors that share memory still sharing it. The loop waits for this and nothing else."""
    copies: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True).contiguous()
        found[name] = copies[key]
    return found
