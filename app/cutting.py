"""Where a row that is too long is cut: the one rule, for preview, report and training alike."""

from collections.abc import Mapping
from typing import Any, NamedTuple

UNKNOWN_LIMIT = 1024  # of a config that does not say


class Window(NamedTuple):
    """A stretch of a row's tokens, half open, that becomes an example."""

    start: int
    stop: int


class TooLong(ValueError):
    """A row is longer than max_length, and `excess_length` says that this is an error."""


class Cutter:
    """Follows one row at a time, told only how many tokens it has; a long row may come in pieces.

    The first token of a window is never a target, it has nothing before it. So windows overlap by one token:
    the last of one predicts the first target of the next.
    """

    def __init__(self, max_length: int, excess: str) -> None:
        """`excess`: split, truncate, drop or error."""
        self._length, self._excess = max_length, excess
        self._tokens = self._done = 0

    @property
    def too_long(self) -> bool:
        """Whether the row has turned out longer than max_length."""
        return self._tokens > self._length

    def begin(self) -> None:
        """A new row."""
        self._tokens = self._done = 0

    def take(self, count: int, last: bool = True) -> list[Window]:
        """The windows that are complete with `count` more tokens. Raises TooLong."""
        self._tokens += count
        if self.too_long and self._excess == "error":
            raise TooLong(f"longer than max_length ({self._length:,} tokens)")
        found = []
        if self._excess == "split":
            while self._tokens - self._done > self._length:
                found.append(Window(self._done, self._done + self._length))
                self._done += self._length - 1
        if last and not (self.too_long and self._excess == "drop"):
            found.append(Window(self._done, min(self._tokens, self._done + self._length)))
        return found


def kept_prompt(prompt: int, answer: int, max_length: int) -> int:
    """How many tokens of a pair's prompt stay, its last ones, where the longer answer has `answer` tokens.

    The prompt loses its beginning, down to half of max_length; what is too long still, the answers lose at
    their ends.
    """
    return min(prompt, max(max_length - answer, max_length // 2))


def limit(config: Mapping[str, Any]) -> int:
    """Tokens a model can attend to, by its config.json."""
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) else config
    found = text.get("max_position_embeddings") or text.get("n_positions")
    return found if isinstance(found, int) and found > 0 else UNKNOWN_LIMIT
