"""Preference pairs cut to length: two answers after one prompt, side by side in the encoded data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import cutting
from app.dataset import DatasetError, Example, Preference
from app.encoding import Encoded, Encoder, EncodingError

VERSION = 1  # of how pairs are cut; raise it when that changes


class Answers:
    """Cuts both answers of a pair alike and counts what was done to them.

    truncate: the prompt loses its beginning, down to half of max_length, until the longer answer fits; if
    that is not enough, the answers lose their ends, and with them the end token.
    """

    def __init__(self, max_length: int, excess: str) -> None:
        self._length, self._excess = max_length, excess
        self._row, self._end = -1, 0
        self._done: list[tuple[Encoded, int]] = []
        names = ("rows", "examples", "tokens", "trained_tokens", "identical", "too_long", "truncated")
        self.counts = dict.fromkeys((*names, "cut_answers", "dropped"), 0)

    def feed(self, encoder: Encoder, batch: Sequence[Example]) -> None:
        """Encodes and takes a batch of pairs. Raises EncodingError for a row that is none."""
        pairs = [example for example in batch if isinstance(example, Preference)]
        if len(pairs) < len(batch):
            line = next(example.line for example in batch if not isinstance(example, Preference))
            raise EncodingError('no preference pair, which method.type "dpo" needs', line)
        for pair, both in zip(pairs, encoder.encode_answers(pairs), strict=True):
            self.add(pair.line, both)

    def add(self, line: int, both: tuple[Encoded, Encoded]) -> None:
        """Takes a pair."""
        self._row += 1
        self.counts["rows"] += 1
        if max(len(answer.ids) for answer in both) > self._length:
            self.counts["too_long"] += 1
            if self._excess == "error":
                raise DatasetError(line, f"longer than max_length ({self._length:,} tokens)")
            if self._excess == "drop":
                self.counts["dropped"] += 1
                return
            self.counts["truncated"] += 1
            both = self._cut(both)
        preferred, rejected = both
        if preferred.ids == rejected.ids:  # as far as they are read: a margin of 0 for ever
            self.counts["identical"] += 1
            return
        self._done += [(answer, self._row) for answer in both]
        self.counts["examples"] += 1
        for answer in both:
            self.counts["tokens"] += len(answer.ids)
            self.counts["trained_tokens"] += int(_mask(answer).sum())

    def take(self) -> dict[str, NDArray[Any]]:
        """What was cut since the last call, as arrays to append to the files."""
        done, self._done = self._done, []
        tokens = [np.array(answer.ids, np.uint32) for answer, _ in done]
        starts = self._end + np.cumsum(np.array([len(part) for part in tokens], np.int64))
        self._end += sum(map(len, tokens))
        return {
            "tokens": np.concatenate([np.zeros(0, np.uint32), *tokens]),
            "trained": np.concatenate([np.zeros(0, np.bool_), *(_mask(answer) for answer, _ in done)]),
            "starts": starts,
            "rows": np.array([row for _, row in done], np.int64),
        }

    def _cut(self, both: tuple[Encoded, Encoded]) -> tuple[Encoded, Encoded]:
        prompt = len(both[0].prompt())
        longest = max(len(answer.ids) for answer in both) - prompt
        kept = cutting.kept_prompt(prompt, longest, self._length)
        self.counts["cut_answers"] += kept + longest > self._length
        preferred, rejected = (_slice(answer, prompt - kept, self._length) for answer in both)
        return preferred, rejected


def _slice(answer: Encoded, start: int, length: int) -> Encoded:
    spans = [(max(0, a - start), min(length, b - start)) for a, b in answer.trained]
    return Encoded(answer.ids[start : start + length], [(a, b) for a, b in spans if a < b])


def _mask(answer: Encoded) -> NDArray[np.bool_]:
    """Which tokens are targets; the first never is, it has nothing before it."""
    trained = np.zeros(len(answer.ids), np.bool_)
    for start, stop in answer.trained:
        trained[start:stop] = True
    trained[:1] = False
    return trained
