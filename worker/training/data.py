"""Training data as memory-mapped token ids, encoded once per (file, tokenizer, settings).

Three flat arrays on disk: the tokens of all examples, one byte a token that says whether it is a target, and
where each example begins. Memory does not grow with the file.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.dataset import DatasetError, Example, Format, Text, read
from app.encoding import Encoded, Encoder
from app.recipe import Recipe
from worker.training import manifest
from worker.training.failure import Failure

VERSION = 1  # of what is on disk; raise it when encoding or cutting changes
BATCH_CHARACTERS = 4_000_000  # encoded at once: enough to keep every core busy
BATCH_ROWS = 4_096
BLOCK = 65_536  # examples whose masks are summed at once
MIN_TRAINED_TOKENS = 8  # fewer would train noise

Tokens = NDArray[np.uint32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Encodings:
    """Encoded examples: windows of at most max_length tokens, each from one of the file's `rows`."""

    tokens: Tokens
    trained: Mask
    starts: NDArray[np.int64]  # one more than there are examples
    rows: NDArray[np.int64]
    counts: dict[str, int]
    key: str

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int) -> tuple[Tokens, Mask]:
        """Token ids and which of them are targets; the first never is, it has nothing before it."""
        part = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.tokens[part], self.trained[part]


@dataclass(frozen=True)
class Share:
    """Some of the examples, in the file's order."""

    encodings: Encodings
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def example(self, index: int) -> tuple[Tokens, Mask]:
        return self.encodings.example(int(self.indices[index]))

    def total(self) -> tuple[int, int]:
        """Tokens, and trained tokens, of all examples; the masks are read a block at a time."""
        whole, trained = self.encodings, 0
        for at in range(0, len(self), BLOCK):
            block = self.indices[at : at + BLOCK]
            first, last = int(block[0]), int(block[-1]) + 1
            starts = whole.starts[first:last] - whole.starts[first]
            mask = whole.trained[int(whole.starts[first]) : int(whole.starts[last])]
            trained += int(np.add.reduceat(mask, starts, dtype=np.int64)[block - first].sum())
        lengths = whole.starts[self.indices + 1] - whole.starts[self.indices]
        return int(lengths.sum()), trained


def encode(
    path: Path,
    form: Format,
    encoder: Encoder,
    recipe: Recipe,
    max_length: int,
    cache: Path,
    beat: Callable[[], None],
) -> Encodings:
    """The file's examples, from the cache if it was encoded before; `beat` is called now and then.

    Raises DatasetError and EncodingError at the first bad row, Failure where there is nothing to learn.
    """
    settings = {
        "version": VERSION,
        "file": _digest(path),
        "format": form,
        "tokenizer": hashlib.sha256(encoder.tokenizer.to_str().encode()).hexdigest(),
        "end": encoder.end,
        "template": encoder.template,
        "max_length": max_length,
        "excess_length": recipe.excess_length,
        "train_on_inputs": recipe.train_on_inputs,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder = cache / key[:32]
    if not (folder / "counts.json").is_file():
        _write(folder, read(path, form), encoder, recipe, max_length, beat)
    found = load(folder, key)
    if found.counts["trained_tokens"] < MIN_TRAINED_TOKENS:
        counts = ", ".join(f"{name} {count:,}" for name, count in found.counts.items())
        raise Failure("no_trainable_tokens", f"There is (almost) nothing to learn in the file: {counts}.")
    return found


def load(folder: Path, key: str) -> Encodings:
    """Maps a folder that `encode` wrote into memory."""
    counts = json.loads((folder / "counts.json").read_text())
    shapes = {"tokens": np.uint32, "trained": np.bool_, "starts": np.int64, "rows": np.int64}
    arrays: dict[str, Any] = {}
    for name, kind in shapes.items():
        file = folder / f"{name}.bin"
        empty = not file.stat().st_size
        arrays[name] = np.zeros(0, kind) if empty else np.memmap(file, kind, mode="r")
    return Encodings(**arrays, counts=counts, key=key)


def split(encodings: Encodings, share: float, seed: int) -> tuple[Share, Share]:
    """Training and validation examples. Windows of one row stay together: half a text tells of the other."""
    everything = np.arange(len(encodings), dtype=np.int64)
    rows = np.unique(encodings.rows)
    chosen = np.random.default_rng([seed, 1]).permutation(rows)[: round(len(rows) * share)]
    held = np.isin(encodings.rows, chosen)
    if share and len(rows) == 1:  # one long document: its end
        held = everything >= round(len(everything) * (1 - share))
    return Share(encodings, everything[~held]), Share(encodings, everything[held])


def _write(
    folder: Path,
    examples: Iterator[Example],
    encoder: Encoder,
    recipe: Recipe,
    max_length: int,
    beat: Callable[[], None],
) -> None:
    # A name of its own: two jobs on one file may encode it at the same time.
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".encoding-{folder.name}-", dir=folder.parent))
    names = ("tokens", "trained", "starts", "rows")
    files = {name: (temporary / f"{name}.bin").open("wb") for name in names}
    windows = Windows(max_length, recipe.excess_length)
    files["starts"].write(np.int64(0).tobytes())
    try:
        for batch in _batches(examples):
            beat()
            encoded = encoder.encode(batch, recipe.train_on_inputs)
            for example, tokens in zip(batch, encoded, strict=True):
                windows.add(example, tokens)
            for name, array in windows.take().items():
                files[name].write(array.tobytes())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        for file in files.values():
            file.close()
    (temporary / "counts.json").write_text(json.dumps(windows.counts))
    for path in temporary.iterdir():
        manifest.sync(path)  # what a power cut emptied would be trained on without a word
    if (folder / "counts.json").is_file():  # the other one was first, and may be reading it
        shutil.rmtree(temporary, ignore_errors=True)
        return
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    manifest.sync(folder.parent)


def _batches(examples: Iterator[Example]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    characters = 0
    for example in examples:
        batch.append(example)
        characters += len(example.text) if isinstance(example, Text) else 1_000
        if characters > BATCH_CHARACTERS or len(batch) >= BATCH_ROWS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Windows:
    """Cuts encoded examples into windows and counts what was done to them."""

    def __init__(self, max_length: int, excess: str) -> None:
        self._length, self._excess = max_length, excess
        self._row = -1
        self._tokens, self._trained = np.zeros(0, np.uint32), np.zeros(0, np.bool_)
        self._done: list[tuple[Tokens, Mask, int]] = []
        self._end, self._long, self._learned = 0, False, False
        names = ("rows", "examples", "tokens", "trained_tokens", "empty", "too_long", "untrained_windows")
        self.counts = dict.fromkeys((*names, "split", "truncated", "dropped"), 0)

    def add(self, example: Example, encoded: Encoded) -> None:
        """Takes a row, or the next piece of one."""
        first, last = (example.first, example.last) if isinstance(example, Text) else (True, True)
        if first:
            self._row += 1
            self._long = self._learned = False
            self._tokens, self._trained = self._tokens[:0], self._trained[:0]
        self._append(encoded)
        self._long = self._long or len(self._tokens) > self._length
        if self._long and self._excess == "error":
            raise DatasetError(example.line, f"longer than max_length ({self._length:,} tokens)")
        self._cut()
        if last:
            self._finish()

    def take(self) -> dict[str, NDArray[Any]]:
        """What was cut since the last call, as arrays to append to the files."""
        done, self._done = self._done, []
        lengths = np.array([len(tokens) for tokens, _, _ in done], np.int64)
        starts = self._end + np.cumsum(lengths)
        self._end += int(lengths.sum())
        return {
            "tokens": np.concatenate([np.zeros(0, np.uint32), *(tokens for tokens, _, _ in done)]),
            "trained": np.concatenate([np.zeros(0, np.bool_), *(trained for _, trained, _ in done)]),
            "starts": starts,
            "rows": np.array([row for _, _, row in done], np.int64),
        }

    def _append(self, encoded: Encoded) -> None:
        trained = np.zeros(len(encoded.ids), np.bool_)
        for start, stop in encoded.trained:
            trained[start:stop] = True
        self._tokens = np.concatenate([self._tokens, np.array(encoded.ids, np.uint32)])
        self._trained = np.concatenate([self._trained, trained])

    def _cut(self) -> None:
        """Windows overlap by one token: the last of one predicts the first target of the next."""
        length = self._length
        while self._excess == "split" and len(self._tokens) > length:
            self._emit(self._tokens[:length], self._trained[:length])
            self._tokens, self._trained = self._tokens[length - 1 :], self._trained[length - 1 :]
        if self._excess != "split" and len(self._tokens) > length:  # a piece that goes on: no need to keep it
            self._tokens, self._trained = self._tokens[: length + 1], self._trained[: length + 1]

    def _finish(self) -> None:
        self.counts["rows"] += 1
        if self._long:
            self.counts["too_long"] += 1
            self.counts[{"split": "split", "truncate": "truncated", "drop": "dropped"}[self._excess]] += 1
        if not (self._long and self._excess == "drop"):
            self._emit(self._tokens[: self._length], self._trained[: self._length])
            self.counts["empty"] += not self._learned

    def _emit(self, tokens: Tokens, trained: Mask) -> None:
        trained = trained.copy()
        trained[:1] = False
        count = int(trained.sum())
        if not count:
            self.counts["untrained_windows"] += self._long
            return
        self._learned = True
        self._done.append((tokens, trained, self._row))
        for name, more in (("examples", 1), ("tokens", len(tokens)), ("trained_tokens", count)):
            self.counts[name] += more


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
