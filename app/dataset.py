"""Training files: what a row may be, checked while it streams in, read back as examples.

Three shapes of JSONL row, one per file: {"text"}, {"prompt", "completion"} and {"messages"}; and plain text.
"""

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

Format = Literal["jsonl", "text"]
MAX_LINE_BYTES = 1_000_000
MAX_PROBLEMS = 20  # told by line; the rest only counted
SEPARATOR = "<|endoftext|>"  # between the documents of a plain text file
PIECE_CHARACTERS = 1_000_000  # a longer document is read in pieces
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


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
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


Example = Text | Pair | Chat


@dataclass(frozen=True)
class Problem:
    """What is wrong, and in which line (counted from 1)."""

    line: int
    message: str


@dataclass(frozen=True)
class Report:
    """What a file holds. `problems` are the first ones, `problem_count` is all of them."""

    rows: int
    bytes: int
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0


class DatasetError(ValueError):
    """A file that cannot be trained on; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line, self.message = line, message


def format_of(filename: str) -> Format:
    """By name alone: `.txt` is plain text, everything else JSONL (the SDK names raw bytes "upload")."""
    return "text" if filename.lower().endswith(".txt") else "jsonl"


class Checker:
    """Checks a file chunk by chunk in constant memory, while it is being uploaded."""

    def __init__(self, format: Format) -> None:  # noqa: A002  the word of the wire
        self._rows = _Lines(self._row) if format == "jsonl" else None
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bytes = self._count = self._wrong = 0
        self._line, self._blank = 1, True
        self._problems: list[Problem] = []
        self._shape: type[Example] | None = None

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the file, cut anywhere."""
        self._bytes += len(chunk)
        if self._rows is None:
            self._text(chunk)
        else:
            self._rows.feed(chunk)

    def finish(self) -> Report:
        """The report; a file without a row is a problem too."""
        if self._rows is None:
            self._text(b"", final=True)
            self._count = 0 if self._blank else 1
        else:
            self._rows.finish()
        if not self._count and not self._wrong:
            self._problem(1, "the file holds no example")
        return Report(self._count, self._bytes, self._problems, self._wrong)

    def _row(self, number: int, line: bytes | None) -> None:
        try:
            example = parse(number, line)
        except DatasetError as error:
            self._problem(number, error.message)
            return
        if example is None:
            return
        self._count += 1
        self._shape = self._shape or type(example)
        if type(example) is not self._shape:
            self._problem(
                number, "this row has another shape than the first one; a file has rows of one shape"
            )

    def _text(self, chunk: bytes, final: bool = False) -> None:
        if self._wrong:
            return
        try:
            text = self._decoder.decode(chunk, final)
        except UnicodeDecodeError:
            self._problem(self._line + chunk.count(b"\n"), "not UTF-8")
            return
        self._line += text.count("\n")
        self._blank = self._blank and not text.replace(SEPARATOR, "").strip()

    def _problem(self, line: int, message: str) -> None:
        self._wrong += 1
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(line, message))


class _Lines:
    """Cuts chunks into lines; a line over the limit is told as None and its bytes are not kept."""

    def __init__(self, row: Callable[[int, bytes | None], None]) -> None:
        self._row, self._number, self._kept, self._skipping = row, 0, bytearray(), False

    def feed(self, chunk: bytes) -> None:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._keep(part)
            self._end()
        self._keep(rest)

    def finish(self) -> None:
        if self._kept or self._skipping:
            self._end()

    def _keep(self, part: bytes) -> None:
        if self._skipping or len(self._kept) + len(part) > MAX_LINE_BYTES:
            self._skipping = True
            self._kept.clear()
        else:
            self._kept += part

    def _end(self) -> None:
        self._number += 1
        self._row(self._number, None if self._skipping else bytes(self._kept))
        self._kept.clear()
        self._skipping = False


def parse(number: int, line: bytes | None) -> Example | None:
    """One row of a JSONL file; None for a blank one. Raises DatasetError. `line` None: it was too long."""
    if line is None or len(line) > MAX_LINE_BYTES:
        raise DatasetError(number, f"longer than {MAX_LINE_BYTES:,} bytes")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        row = json.loads(text) if text else None
        if "\\ud" in text.lower():
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise DatasetError(number, f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except UnicodeDecodeError:
        raise DatasetError(number, "not UTF-8") from None
    except UnicodeEncodeError:
        raise DatasetError(number, "half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise DatasetError(number, "nested too deeply") from None
    if not text:
        return None
    return _example(number, row)


def _example(number: int, row: object) -> Example:
    if not isinstance(row, Mapping):
        raise DatasetError(number, "a row must be a JSON object")
    shapes = [key for key in ("text", "prompt", "messages") if key in row]
    if len(shapes) != 1:
        had = "none of them" if not shapes else " and ".join(shapes)
        raise DatasetError(
            number, f'a row has "text", or "prompt" and "completion", or "messages"; here: {had}'
        )
    if "messages" in row:
        return Chat(number, _messages(number, row["messages"]), _tools(number, row.get("tools")))
    if "prompt" in row:
        return Pair(number, _string(number, row, "prompt"), _string(number, row, "completion"))
    return Text(number, _string(number, row, "text"))


def _string(number: int, row: Mapping[str, object], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DatasetError(number, f'"{key}" must be a string')
    return value


def _messages(number: int, messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise DatasetError(number, '"messages" must be a list with at least one message')
    for message in messages:
        _check_message(number, message)
    if not any(message["role"] == "assistant" for message in messages):
        raise DatasetError(number, "no message of the assistant: there is nothing to learn")
    return messages


def _check_message(number: int, message: object) -> None:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(role, str) or role not in ROLES:
        raise DatasetError(number, f"a message needs a role: one of {', '.join(sorted(ROLES))}")
    content, calls = message.get("content"), message.get("tool_calls")
    parts = isinstance(content, list) and all(
        isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content
    )
    if not (isinstance(content, str) or parts or (content is None and calls)):
        raise DatasetError(number, '"content" must be a string or a list of text parts')
    if "weight" in message and (role != "assistant" or message["weight"] not in (0, 1)):
        raise DatasetError(number, '"weight" is 0 or 1, and only an assistant\'s message has one')


def _tools(number: int, tools: object) -> list[dict[str, Any]] | None:
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        raise DatasetError(number, '"tools" must be a list of objects')
    return tools


def read(path: Path, format: Format) -> Iterator[Example]:  # noqa: A002  the word of the wire
    """The file's examples in order, in constant memory. Raises DatasetError at the first bad row."""
    with path.open("rb") as file:
        if format == "text":
            yield from _documents(file)
            return
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 2), b""), 1):
            if example := parse(number, line.rstrip(b"\r\n")):
                yield example


def _documents(file: BinaryIO) -> Iterator[Text]:
    """A plain text file is one document, unless the separator occurs."""
    decoder, line, rest, more = codecs.getincrementaldecoder("utf-8-sig")(), 1, "", True
    within = begun = False
    while more:
        chunk = file.read(PIECE_CHARACTERS)
        more = bool(chunk)
        try:
            rest += decoder.decode(chunk, final=not more)
        except UnicodeDecodeError:
            raise DatasetError(line + chunk.count(b"\n"), "not UTF-8") from None
        *ended, rest = rest.split(SEPARATOR)
        for document in ended:
            yield Text(line, document, first=not within)
            line, within, begun = line + document.count("\n"), False, True
        if more and (cut := _cut(rest)):
            yield Text(line, rest[:cut], first=not within, last=False)
            line, rest, within = line + rest.count("\n", 0, cut), rest[cut:], True
    if rest.strip() or within or not begun:
        yield Text(line, rest, first=not within)


def _cut(text: str) -> int:
    """Where a long text may be cut without changing its tokens: after a line break that a word follows,
    or, where lines are endless, before the single space between two words."""
    low, high = PIECE_CHARACTERS // 2, len(text) - len(SEPARATOR)
    at = high
    while (at := text.rfind("\n", low, at)) > 0:
        if not text[at + 1].isspace():
            return at + 1
    at = high
    while (at := text.rfind(" ", low, at)) > 0:
        if not (text[at - 1].isspace() or text[at + 1].isspace()):
            return at
    return 0
