"""What the model thinks of preference pairs before training: measured once, kept beside the encoded data.

So no second model takes part in training, with or without LoRA, and every attempt reads the same numbers.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.training import manifest
from worker.training.data import Encodings, Unit
from worker.training.device import Device
from worker.training.events import Notice
from worker.training.failure import is_out_of_memory
from worker.training.job import Job
from worker.training.model import Model, load

VERSION = 1  # of how it is measured; raise it when that changes
TELL_EVERY = 60.0  # seconds
Likelihoods = NDArray[np.float64]


def weights_digest(folder: Path, beat: Callable[[], None]) -> str:
    """SHA-256 of what makes a model folder compute what it computes."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                digest.update(chunk)
                beat()
    return digest.hexdigest()


@dataclass
class Reference:
    """The base model of a job, asked for the log-likelihoods of encoded pairs.

    `weights` is its digest, `beat` is called now and then.
    """

    job: Job
    weights: str
    place: Device
    end: int
    max_length: int
    beat: Callable[[], None]
    _model: Model | None = None

    def give(self, encodings: Encodings) -> Iterator[Notice | Encodings]:
        """Yields the encodings with what was measured, now or before.

        Before them come notices how far it is, for silence would be taken for a stall.
        """
        path, size = self._path(encodings), 8 * len(encodings)
        missing = not path.is_file() or path.stat().st_size != size
        if self.place.total([missing])[0]:  # all processes measure or none
            found = yield from self._measure(encodings)
            if not self.place.rank:
                _keep(path, found)
        else:
            found = np.fromfile(path, np.float64)
        yield replace(encodings, reference=found)

    def _measure(self, encodings: Encodings) -> Generator[Notice, None, Likelihoods]:
        """Every process reads a part, in as many batches as the others."""
        rank, world, told = self.place.rank, self.place.world, time.monotonic()
        found = np.zeros(len(encodings))
        batches = list(_batches(encodings, self.place.tokens_per_micro_step))
        for at in range(0, len(batches), world):
            self.beat()
            mine = batches[min(at + rank, len(batches) - 1)]
            values = self._likelihoods(encodings, mine)
            if at + rank < len(batches):
                found[mine.start : mine.stop] = values
            if time.monotonic() - told > TELL_EVERY:
                told = time.monotonic()
                yield _notice(batches[at].stop, len(encodings))
        yield _notice(len(encodings), len(encodings))
        return np.array(self.place.total(found.tolist()))

    def _likelihoods(self, encodings: Encodings, part: range) -> list[float]:
        model = self._loaded()
        try:
            everything = Unit([encodings.example(i) for i in part], [])
            batch = model.lay([everything], self.max_length)
            found: list[float] = model.likelihoods(batch, len(part)).tolist()
            return found
        except Exception as error:
            if not is_out_of_memory(error) or len(part) == 1:
                raise
        self.place.free()
        half = len(part) // 2
        return [v for piece in (part[:half], part[half:]) for v in self._likelihoods(encodings, piece)]

    def _loaded(self) -> Model:
        if self._model is None:
            # Without what speeds up training alone.
            recipe = self.job.recipe.model_copy(
                update={"torch_compile": False, "gradient_checkpointing": False}
            )
            self._model = Model(load(self.job.model, recipe, self.place), self.place, recipe)
            self._model.end = self.end
            self._model.prepare(recipe)
        return self._model

    def _path(self, encodings: Encodings) -> Path:
        # What changes digits, and nothing that may differ between attempts.
        numbers = [self.place.place.type, self.place.precision, self.job.recipe.tf32]
        key = json.dumps([VERSION, self.weights, encodings.key, numbers])
        name = f"reference-{hashlib.sha256(key.encode()).hexdigest()[:32]}.bin"
        return self.job.cache_folder / encodings.key[:32] / name


def _batches(encodings: Encodings, tokens: int) -> Iterator[range]:
    """Neighbours of about so many tokens together: the same for every attempt, whatever its batch sizes."""
    start = 0
    for stop in range(1, len(encodings) + 1):
        over = stop < len(encodings) and encodings.starts[stop + 1] - encodings.starts[start] > tokens
        if over or stop == len(encodings):
            yield range(start, stop)
            start = stop


def _notice(done: int, total: int) -> Notice:
    message = (
        f"The model before training has read {done // 2:,} of {total // 2:,} pairs, once for all attempts."
    )
    return Notice("info", "reference", message, {"pairs": done // 2, "total": total // 2})


def _keep(path: Path, found: Likelihoods) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=".reference-", dir=path.parent)
    os.close(descriptor)
    found.tofile(temporary)
    manifest.sync(Path(temporary))
    os.replace(temporary, path)
    manifest.sync(path.parent)
