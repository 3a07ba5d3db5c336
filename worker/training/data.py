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

from app.dataset import Columns, Example, Format, in_batches, read
from app.encoding import Encoder
from app.recipe import Method, Recipe
from worker.training import manifest, pairs
from worker.training.failure import Failure
from worker.training.pairs import Answers
from worker.training.windows import Mask, Tokens, Windows

VERSION = 1  # of what is on disk; raise it when encoding or cutting changes
BATCH_CHARACTERS = 4_000_000  # encoded at once: enough to keep every core busy
BATCH_ROWS = 4_096
BLOCK = 65_536  # examples whose masks are summed at once
MIN_TRAINED_TOKENS = 8  # fewer would train noise
GROUP: dict[Method, int] = {"supervised": 1, "dpo": 2}


@dataclass(frozen=True)
class Encodings:
    """Encoded examples: windows of at most max_length tokens, each from one of the file's `rows`.

    `group` of them are a unit: one window, or a preference pair's preferred answer and then its other one.
    """

    tokens: Tokens
    trained: Mask
    starts: NDArray[np.int64]  # one more than there are examples
    rows: NDArray[np.int64]
    counts: dict[str, int]
    key: str
    group: int = 1
    reference: NDArray[np.float64] | None = None  # log-likelihood of each example before training

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int) -> tuple[Tokens, Mask]:
        """Token ids and which of them are targets; the first never is, it has nothing before it."""
        part = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.tokens[part], self.trained[part]


@dataclass(frozen=True)
class Unit:
    """What counts as one in a batch."""

    examples: list[tuple[Tokens, Mask]]
    reference: list[float]  # one for each example, or none


@dataclass(frozen=True)
class Share:
    """Some of the units, in the file's order."""

    encodings: Encodings
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def unit(self, index: int) -> Unit:
        whole = self.encodings
        members = self._examples(self.indices[index : index + 1]).tolist()
        known = [] if whole.reference is None else [float(whole.reference[i]) for i in members]
        return Unit([whole.example(i) for i in members], known)

    def _examples(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        group = self.encodings.group
        return (units[:, None] * group + np.arange(group)).reshape(-1)

    def total(self) -> tuple[int, int]:
        """Tokens, and trained tokens, of all examples; the masks are read a block at a time."""
        whole, trained, indices = self.encodings, 0, self._examples(self.indices)
        for at in range(0, len(indices), BLOCK):
            block = indices[at : at + BLOCK]
            first, last = int(block[0]), int(block[-1]) + 1
            starts = whole.starts[first:last] - whole.starts[first]
            mask = whole.trained[int(whole.starts[first]) : int(whole.starts[last])]
            trained += int(np.add.reduceat(mask, starts, dtype=np.int64)[block - first].sum())
        lengths = whole.starts[indices + 1] - whole.starts[indices]
        return int(lengths.sum()), trained


def encode(
    path: Path,
    form: Format,
    encoder: Encoder,
    recipe: Recipe,
    max_length: int,
    cache: Path,
    beat: Callable[[], None],
    columns: Columns | None = None,
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
    if recipe.method == "dpo":
        settings["pairs"] = pairs.VERSION
    if columns:
        settings["columns"] = dict(columns)
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    folder = cache / key[:32]
    if not is_whole(folder):
        _write(folder, read(path, form, columns), encoder, _cutter(recipe, max_length), beat)
    found = load(folder, key, GROUP[recipe.method])
    if found.counts["trained_tokens"] < MIN_TRAINED_TOKENS:
        counts = ", ".join(f"{name} {count:,}" for name, count in found.counts.items())
        raise Failure("no_trainable_tokens", f"There is (almost) nothing to learn in the file: {counts}.")
    return found


def _cutter(recipe: Recipe, max_length: int) -> Windows | Answers:
    if recipe.method == "dpo":
        return Answers(max_length, recipe.excess_length)
    return Windows(max_length, recipe.excess_length, recipe.train_on_inputs)


def load(folder: Path, key: str, group: int = 1) -> Encodings:
    """Maps a folder that `encode` wrote into memory."""
    counts = json.loads((folder / "counts.json").read_text())
    shapes = {"tokens": np.uint32, "trained": np.bool_, "starts": np.int64, "rows": np.int64}
    arrays: dict[str, Any] = {}
    for name, kind in shapes.items():
        file = folder / f"{name}.bin"
        empty = not file.stat().st_size
        arrays[name] = np.zeros(0, kind) if empty else np.memmap(file, kind, mode="r")
    return Encodings(**arrays, counts=counts, key=key, group=group)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds all that `encode` wrote: the arrays are as long as their counts say."""
    try:
        found = load(folder, "")
    except (OSError, ValueError):
        return False
    tokens, ends = found.counts.get("tokens"), found.starts[[0, -1]].tolist() if len(found.starts) else []
    lengths = len(found.starts) == len(found) + 1 and len(found.tokens) == len(found.trained) == tokens
    return lengths and ends == [0, tokens]


def split(encodings: Encodings, share: float, seed: int) -> tuple[Share, Share]:
    """Training and validation examples. Windows of one row stay together: half a text tells of the other."""
    rows_of = encodings.rows[:: encodings.group]
    everything = np.arange(len(rows_of), dtype=np.int64)
    if not share:  # of millions of examples the rest takes seconds
        return Share(encodings, everything), Share(encodings, everything[:0])
    rows = np.unique(rows_of)
    chosen = np.random.default_rng([seed, 1]).permutation(rows)[: round(len(rows) * share)]
    held = np.isin(rows_of, chosen)
    if len(rows) == 1:  # one long document: its end
        held = everything >= round(len(everything) * (1 - share))
    return Share(encodings, everything[~held]), Share(encodings, everything[held])


def _write(
    folder: Path,
    examples: Iterator[Example],
    encoder: Encoder,
    cutter: Windows | Answers,
    beat: Callable[[], None],
) -> None:
    # A name of its own: two jobs on one file may encode it at the same time.
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".encoding-{folder.name}-", dir=folder.parent))
    names = ("tokens", "trained", "starts", "rows")
    files = {name: (temporary / f"{name}.bin").open("wb") for name in names}
    files["starts"].write(np.int64(0).tobytes())
    try:
        for batch in in_batches(examples, BATCH_ROWS, BATCH_CHARACTERS):
            beat()
            cutter.feed(encoder, batch)
            for name, array in cutter.take().items():
                files[name].write(array.tobytes())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        for file in files.values():
            file.close()
    (temporary / "counts.json").write_text(json.dumps(cutter.counts))
    for path in temporary.iterdir():
        manifest.sync(path)  # what a power cut emptied would be trained on without a word
    if is_whole(folder):  # the other one was first, and may be reading it
        shutil.rmtree(temporary, ignore_errors=True)
        return
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    manifest.sync(folder.parent)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
