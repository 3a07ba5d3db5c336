"""Encoded examples cut to length: windows of at most max_length tokens, each token a target once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.cutting import Cutter, TooLong
from app.dataset import DatasetError, Example, Text
from app.encoding import Encoded, Encoder

Tokens = NDArray[np.uint32]
Mask = NDArray[np.bool_]


class Windows:
    """Cuts encoded examples into windows and counts what was done to them."""

    def __init__(self, max_length: int, excess: str, whole: bool = False) -> None:
        """`whole`: prompts are learned too."""
        self._length, self._excess, self._whole = max_length, excess, whole
        self._cutter = Cutter(max_length, excess)
        self._row, self._start = -1, 0  # `_start`: where in its row what is kept of it begins
        self._tokens, self._trained = np.zeros(0, np.uint32), np.zeros(0, np.bool_)
        self._done: list[tuple[Tokens, Mask, int]] = []
        self._end, self._learned = 0, False
        names = ("rows", "examples", "tokens", "trained_tokens", "empty", "too_long", "untrained_windows")
        self.counts = dict.fromkeys((*names, "split", "truncated", "dropped"), 0)

    def feed(self, encoder: Encoder, batch: list[Example]) -> None:
        """Encodes and takes a batch of rows, or pieces of them."""
        for example, encoded in zip(batch, encoder.encode(batch, self._whole), strict=True):
            self.add(example, encoded)

    def add(self, example: Example, encoded: Encoded) -> None:
        """Takes a row, or the next piece of one."""
        first, last = (example.first, example.last) if isinstance(example, Text) else (True, True)
        if first:
            self._row, self._start, self._learned = self._row + 1, 0, False
            self._tokens, self._trained = self._tokens[:0], self._trained[:0]
            self._cutter.begin()
        self._append(encoded)
        try:
            windows = self._cutter.take(len(encoded.ids), last)
        except TooLong as error:
            raise DatasetError(example.line, str(error)) from None
        for start, stop in windows:
            part = slice(start - self._start, stop - self._start)
            self._emit(self._tokens[part], self._trained[part])
        self._forget(windows[-1].stop - 1 if windows else 0)
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

    def _forget(self, done: int) -> None:
        """Of a text that comes in pieces only what a window can still take is kept."""
        drop = max(0, done - self._start)
        keep = slice(drop, None if self._excess == "split" else self._length + 1)
        self._tokens, self._trained = self._tokens[keep], self._trained[keep]
        self._start += drop

    def _finish(self) -> None:
        self.counts["rows"] += 1
        long = self._cutter.too_long
        if long:
            self.counts["too_long"] += 1
            self.counts[{"split": "split", "truncate": "truncated", "drop": "dropped"}[self._excess]] += 1
        if not (long and self._excess == "drop"):
            self.counts["empty"] += not self._learned

    def _emit(self, tokens: Tokens, trained: Mask) -> None:
        trained = trained.copy()
        trained[:1] = False
        count = int(trained.sum())
        if not count:
            self.counts["untrained_windows"] += self._cutter.too_long
            return
        self._learned = True
        self._done.append((tokens, trained, self._row))
        for name, more in (("examples", 1), ("tokens", len(tokens)), ("trained_tokens", count)):
            self.counts[name] += more
