"""What a training file holds, whatever it was written in: one of four kinds of example a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Text:
    """A document, to be learned from its first word on; a long one comes in pieces, `first` to `last`."""

    line: int
    text: str
    first: bool = True
    last: bool = True


@dataclass(frozen=True)
class Pair:
    """A prompt, and the completion to learn."""

    line: int
    prompt: str
    completion: str


@dataclass(frozen=True)
class Chat:
    """Messages as the row has them; the assistant's are learned unless their weight is 0."""

    line: int
    messages: Messages
    tools: Messages | None = None


@dataclass(frozen=True)
class Preference:
    """A conversation, and two ways to go on from it: the one to be preferred and the other."""

    line: int
    messages: Messages
    preferred: Messages
    rejected: Messages
    tools: Messages | None = None


Example = Text | Pair | Chat | Preference


@dataclass(frozen=True)
class Problem:
    """What is wrong, in which line (counted from 1) and, where it can be said, at which key of the row."""

    line: int
    message: str
    key: str | None = None


class DatasetError(ValueError):
    """A row that cannot be trained on; `line` counts from 1. `problems` are all that were found in it."""

    def __init__(self, line: int, message: str, key: str | None = None, more: Sequence[Problem] = ()) -> None:
        super().__init__(f"line {line}: {message}")
        self.line, self.message = line, message
        self.problems = [Problem(line, message, key), *more]
