"""A file seen through a model: its rows as token ids, cut as training will cut them."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from app import cutting, resolution
from app.cutting import Cutter, TooLong, Window
from app.dataset import Example, Preference, Text, in_batches
from app.encoding import Encoded, Encoder
from app.recipe import Recipe

BATCH_ROWS = 512
BATCH_CHARACTERS = 1_000_000
Outcome = Literal["whole", "split", "truncated", "dropped", "refused", "untrained"]
CUT: dict[str, Outcome] = {"split": "split", "truncate": "truncated", "drop": "dropped"}
# A pair is never split.
PAIR_CUT: dict[str, Outcome] = {**CUT, "split": "truncated", "error": "refused"}


@dataclass
class Seen:
    """A row as training takes it. `windows` are those with a target in them; others are left out of training.

    Spans are half open, in tokens of the row.
    """

    line: int
    tokens: int = 0
    ids: list[int] = field(default_factory=list)
    trained: list[Window] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    outcome: Outcome = "whole"
    answer: str | None = None  # preferred or rejected, where a row has both
    too_long: bool = False

    def targets(self, window: Window) -> list[Window]:
        """What is learned in a window. Its first token never is: nothing stands before it."""
        first = window.start + 1
        found: list[Window] = []
        # A long row cut short has as many windows as spans: looking at all for each would take for ever.
        for at in range(bisect_right(self.trained, first, key=lambda span: span.stop), len(self.trained)):
            span = self.trained[at]
            if span.start >= window.stop:
                break
            start, stop = max(span.start, first), min(span.stop, window.stop)
            if found and found[-1].stop == start < stop:
                found[-1] = Window(found[-1].start, stop)
            elif start < stop:
                found.append(Window(start, stop))
        return found

    def trained_tokens(self) -> int:
        return sum(span.stop - span.start for window in self.windows for span in self.targets(window))


class Lens:
    """A model's tokenizer, template and length, and what the recipe says of them."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        """Raises EncodingError, and ValueError for a max_length beyond the model."""
        self.encoder = Encoder.load(folder)
        self.recipe = recipe
        limit = cutting.limit(_config(folder))
        self.max_length = resolution.max_length(recipe, limit)
        if self.max_length > limit:
            told = f"'max_length' is {self.max_length:,}, but the model attends to {limit:,} tokens at most."
            raise ValueError(told)
        self._cutter = Cutter(self.max_length, recipe.excess_length)

    def look(self, examples: Iterable[Example]) -> Iterator[Seen]:
        """The rows, each once all of it was read. Raises EncodingError with a line."""
        row: Seen | None = None
        for batch in in_batches(examples, BATCH_ROWS, BATCH_CHARACTERS):
            pairs = [example for example in batch if isinstance(example, Preference)]
            if pairs:
                for pair, both in zip(pairs, self.encoder.encode_answers(pairs), strict=True):
                    yield from self._both(pair.line, both)
                continue
            encoded = self.encoder.encode(batch, self.recipe.train_on_inputs)
            for example, tokens in zip(batch, encoded, strict=True):
                first, last = (example.first, example.last) if isinstance(example, Text) else (True, True)
                if first or row is None:
                    row = Seen(example.line)
                    self._cutter.begin()
                self._add(row, tokens, last)
                if last:
                    yield row
                    row = None

    def special(self) -> list[str]:
        """The tokens that are no text, as the tokenizer finds them in one all the same."""
        added = self.encoder.tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special and token.content]

    def _both(self, line: int, both: tuple[Encoded, Encoded]) -> list[Seen]:
        """The two answers of a pair, cut alike, each after its prompt."""
        length, excess = self.max_length, self.recipe.excess_length
        prompt, longest = len(both[0].prompt()), max(len(answer.ids) for answer in both)
        start = prompt - cutting.kept_prompt(prompt, longest - prompt, length) if longest > length else 0
        found = []
        for name, answer in zip(("preferred", "rejected"), both, strict=True):
            spans = [Window(*span) for span in answer.trained]
            row = Seen(line, len(answer.ids), answer.ids, spans, answer=name, too_long=longest > length)
            row.windows = [Window(start, min(len(answer.ids), start + length))]
            if row.too_long:
                row.outcome = PAIR_CUT[excess]
            found.append(row)
        preferred, rejected = (row.ids[row.windows[0].start : row.windows[0].stop] for row in found)
        for row in found:
            if preferred == rejected:
                row.outcome = "untrained"
            if row.outcome not in ("whole", "truncated"):
                row.windows = []
        return found

    def _add(self, row: Seen, encoded: Encoded, last: bool) -> None:
        row.ids += encoded.ids
        row.trained += [Window(row.tokens + start, row.tokens + stop) for start, stop in encoded.trained]
        row.tokens += len(encoded.ids)
        try:
            windows = self._cutter.take(len(encoded.ids), last)
        except TooLong:
            row.outcome, row.too_long = "refused", True
            return
        row.too_long = self._cutter.too_long
        row.windows += [window for window in windows if row.targets(window)]
        if self._cutter.too_long:
            row.outcome = CUT[self.recipe.excess_length]
        if last and not row.windows and row.outcome != "dropped":
            row.outcome = "untrained"


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
