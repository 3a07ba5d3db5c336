"""Training files: checked while they stream in, read back as examples.

JSONL, whose rows all have one of the shapes in `app.shapes`; and plain text.
"""

import codecs
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from app import shapes
from app.examples import Chat as Chat  # callers know them from here
from app.examples import DatasetError as DatasetError
from app.examples import Example as Example
from app.examples import Pair as Pair
from app.examples import Preference as Preference
from app.examples import Problem as Problem
from app.examples import Text as Text
from app.shapes import Shape as Shape

Format = Literal["jsonl", "text"]
MAX_LINE_BYTES = 1_000_000
MAX_PROBLEMS = 20  # told by line; the rest only counted
SEPARATOR = "<|endoftext|>"  # between the documents of a plain text file
PIECE_CHARACTERS = 1_000_000  # a longer document is read in pieces


@dataclass(frozen=True)
class Report:
    """What a file holds. `problems` are the first ones, `problem_count` is all of them."""

    rows: int
    bytes: int
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    shape: Shape | None = None


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
        self._shape: Shape | None = "text" if format == "text" else None
        self._first = 0  # the line of the row that gave the shape

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
            self._problem(Problem(1, "the file holds no example"))
        return Report(self._count, self._bytes, self._problems, self._wrong, self._shape)

    def _row(self, number: int, line: bytes | None) -> None:
        try:
            row = parse(number, line)
        except DatasetError as error:
            for problem in error.problems:
                self._problem(problem)
            return
        if row is None:
            return
        self._count += 1
        if self._shape is None:
            self._shape, self._first = row[0], number
        if row[0] != self._shape:
            self._problem(
                Problem(
                    number,
                    f"this row's shape is {row[0]}, that of line {self._first} is {self._shape};"
                    " a file has rows of one shape",
                    shapes.MARKS[row[0]][0],
                )
            )

    def _text(self, chunk: bytes, final: bool = False) -> None:
        if self._wrong:
            return
        try:
            text = self._decoder.decode(chunk, final)
        except UnicodeDecodeError:
            self._problem(Problem(self._line + chunk.count(b"\n"), "not UTF-8"))
            return
        self._line += text.count("\n")
        self._blank = self._blank and not text.replace(SEPARATOR, "").strip()

    def _problem(self, problem: Problem) -> None:
        self._wrong += 1
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem)


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


def parse(number: int, line: bytes | None) -> tuple[Shape, Example] | None:
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
    except ValueError:
        raise DatasetError(number, "a number of too many digits") from None
    return shapes.example(number, row) if text else None


def read(path: Path, format: Format) -> Iterator[Example]:  # noqa: A002  the word of the wire
    """The file's examples in order, in constant memory. Raises DatasetError at the first bad row."""
    with path.open("rb") as file:
        if format == "text":
            yield from _documents(file)
            return
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 2), b""), 1):
            if row := parse(number, line.rstrip(b"\r\n")):
                yield row[1]


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
