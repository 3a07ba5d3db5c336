"""What training will make of a file, in numbers: the trainer's own counts, which a test holds them to.

Of a large file every n-th row is encoded, and the counts are multiplied.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app import dataset
from app.dataset import Chat, Example, Text
from app.inspection.lens import CUT, PAIR_CUT, Lens, Seen
from app.inspection.refusal import Refused
from app.recipe import Recipe

TOKEN_BYTES = 16_000_000  # encoded of a file at most: some ten seconds
READ_SECONDS = 40  # then the counts go by the rows until there
COUNTED = ("rows", "examples", "tokens", "trained_tokens", "empty", "too_long", *CUT.values())
Said = dict[str, Any]


class Sample:
    """Hands out every `stride`-th row, or piece of a plain text."""

    def __init__(self, said: Said) -> None:
        self.stride = -(-Path(said["path"]).stat().st_size // TOKEN_BYTES)
        self.read = self.given = 0
        self.complete, self.has_chats = True, False
        self._said = said

    def __iter__(self) -> Iterator[Example]:
        until = time.monotonic() + READ_SECONDS
        said = self._said
        for example in dataset.read(Path(said["path"]), said["format"], said["columns"]):
            if time.monotonic() > until:
                self.complete = False
                return
            if self.read % self.stride == 0:
                self.given += 1
                self.has_chats = self.has_chats or isinstance(example, Chat)
                alone = self.stride > 1 and isinstance(example, Text)
                # A piece by itself, where not all are encoded: what stands before it is not there.
                yield Text(example.line, example.text) if alone and isinstance(example, Text) else example
            self.read += 1


def make(said: Said, recipe: Recipe) -> Said:
    """`said` has path, format, columns, folder and `rows`. Raises Refused, DatasetError, EncodingError."""
    try:
        lens = Lens(Path(said["folder"]), recipe)
    except ValueError as error:
        raise Refused("invalid_value", str(error), "max_length") from None
    sample = Sample(said)
    counts = dict.fromkeys(COUNTED, 0)
    learned = longest = 0
    for row in lens.look(sample):
        _add(counts, row, recipe.excess_length)
        learned += bool(row.windows) and row.answer != "rejected"
        longest = max([longest, *(window.stop - window.start for window in row.windows)])
    exact = sample.stride == 1 and sample.complete
    factor = 1.0 if exact else _factor(said, sample)
    return {
        "exact": exact,
        "counts": {name: round(count * factor) for name, count in counts.items()},
        "with_examples": round(learned * factor),
        "longest": longest,
        "max_length": lens.max_length,
        "has_template": lens.encoder.has_template,
        "has_chats": sample.has_chats,
    }


def _add(counts: dict[str, int], row: Seen, excess: str) -> None:
    counts["tokens"] += sum(window.stop - window.start for window in row.windows)
    counts["trained_tokens"] += row.trained_tokens()
    if row.answer == "rejected":  # a pair is one example of two answers
        return
    counts["rows"] += 1
    counts["examples"] += len(row.windows)
    counts["empty"] += row.outcome == "untrained"
    counts["too_long"] += row.too_long
    if row.too_long and row.outcome != "refused":
        counts[(CUT if row.answer is None else PAIR_CUT)[excess]] += 1


def _factor(said: Said, sample: Sample) -> float:
    """How many rows one that was encoded stands for: all are counted already, when a file is uploaded."""
    rows = said["rows"] if said["format"] != "text" and said["rows"] else sample.read
    return float(rows / max(1, sample.given))
