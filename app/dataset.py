"""Training files: checked while they stream in, read back as examples.

JSON Lines, CSV and Parquet, whose rows all have one of the shapes in `app.shapes`; and plain text. One
reader a format serves both the check and the training, so that what was accepted can be read.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from app import lines, shapes
from app.examples import Chat as Chat  # callers know them from here
from app.examples import DatasetError as DatasetError
from app.examples import Example as Example
from app.examples import Pair as Pair
from app.examples import Preference as Preference
from app.examples import Problem as Problem
from app.examples import Text as Text
from app.lines import MAX_LINE_BYTES as MAX_LINE_BYTES
from app.rows import Columns as Columns
from app.rows import Csv, Found, JsonLines, PlainText, Reader, Row
from app.shapes import Shape as Shape

Format = Literal["jsonl", "text", "csv", "parquet"]
FORMATS: tuple[Format, ...] = ("jsonl", "text", "csv", "parquet")
ENDINGS: dict[str, Format] = {".txt": "text", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
MAX_PROBLEMS = 20  # told by line; the rest only counted
CHUNK = 1_000_000
PARQUET = b"PAR1"
# What a file may turn out to be by its first bytes, and what to do about it.
FOREIGN = {
    b"\xff\xfe\0\0": "UTF-32; save the file as UTF-8",
    b"\0\0\xfe\xff": "UTF-32; save the file as UTF-8",
    b"\xff\xfe": "UTF-16; save the file as UTF-8",
    b"\xfe\xff": "UTF-16; save the file as UTF-8",
    b"\x1f\x8b": "compressed with gzip; upload it unpacked",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; upload it unpacked",
    b"BZh": "compressed with bzip2; upload it unpacked",
    b"PK\x03\x04": "a zip archive or an Excel sheet; upload the file in it, or save the sheet as CSV",
    b"%PDF": "a PDF document; extract its text first",
}


@dataclass(frozen=True)
class Report:
    """What a file holds. `problems` are the first ones, `problem_count` is all of them."""

    rows: int
    bytes: int
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    shape: Shape | None = None


def format_of(filename: str) -> Format:
    """By name alone: what has no ending that we know is JSONL (the SDK names raw bytes "upload")."""
    return ENDINGS.get(Path(filename.lower()).suffix, "jsonl")


def recognise(head: bytes, format: Format) -> Format:  # noqa: A002  the word of the wire
    """The format by the first four bytes too, which tell Parquet. Raises DatasetError for what is foreign."""
    if head == PARQUET:
        return "parquet"
    if format == "parquet":
        raise DatasetError(1, "not Parquet: the file does not begin with its mark, PAR1")
    for mark, told in FOREIGN.items():
        if head.startswith(mark):
            raise DatasetError(1, told)
    if b"\0" in head[:2]:
        raise DatasetError(1, "UTF-16, or binary; save the file as UTF-8")
    return format


class Checker:
    """Checks a file chunk by chunk in constant memory, while it is being uploaded.

    Parquet can only be read from its end: where `is_whole_needed` then, `check` is to be asked.
    """

    is_whole_needed = False

    def __init__(self, format: Format, columns: Columns | None = None) -> None:  # noqa: A002
        self.format: Format = format
        self._columns = columns
        self._head: bytearray | None = bytearray()
        self._reader: Reader | None = None
        self._bytes, self._tally = 0, Tally()

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the file, cut anywhere."""
        self._bytes += len(chunk)
        if self._head is not None:
            self._head += chunk
            if len(self._head) < len(PARQUET):
                return
            chunk = self._begin()
        if self._reader is not None:
            self._tally.take(self._reader.feed(chunk))

    def finish(self) -> Report:
        """The report; a file without a row is a problem too."""
        if self._head is not None:
            chunk = self._begin()
            if self._reader is not None:
                self._tally.take(self._reader.feed(chunk))
        if self._reader is not None:
            self._tally.take(self._reader.finish())
        self.is_whole_needed = self.format == "parquet" and not self._tally.count
        return self._tally.report(self._bytes)

    def _begin(self) -> bytes:
        head, self._head = bytes(self._head or b""), None
        try:
            self.format = recognise(head[: len(PARQUET)], self.format)
        except DatasetError as error:
            self._tally.take(iter([error]))
            return head
        if self.format != "parquet":
            self._reader = reader(self.format, self._columns)
        return head


class Tally:
    """Counts rows and problems, and sees that all rows have one shape."""

    def __init__(self) -> None:
        self.rows = self.count = 0
        self.problems: list[Problem] = []
        self.shape: Shape | None = None
        self._first, self._blank = 0, True

    def take(self, found: Iterator[Found]) -> None:
        for row in found:
            if isinstance(row, DatasetError):
                for problem in row.problems:
                    self._problem(problem)
                continue
            example = row.example
            self.rows += not isinstance(example, Text) or example.last
            self._blank = self._blank and isinstance(example, Text) and not example.text.strip()
            if self.shape is None:
                self.shape, self._first = row.shape, row.line
            if row.shape != self.shape:
                self._problem(_mixed(row, self.shape, self._first))

    def report(self, size: int) -> Report:
        if self._blank and not self.count:
            self._problem(Problem(1, "the file holds no example"))
        return Report(self.rows, size, self.problems, self.count, self.shape)

    def _problem(self, problem: Problem) -> None:
        self.count += 1
        if len(self.problems) < MAX_PROBLEMS:
            key = None if problem.key is None else _printable(problem.key)
            self.problems.append(Problem(problem.line, _printable(problem.message), key))


def _printable(text: str) -> str:
    """Names come from the file and may hold what no database keeps: NUL, halves of surrogate pairs."""
    return text.replace("\0", "\\0").encode(errors="backslashreplace").decode()


def _mixed(row: Row, shape: Shape, first: int) -> Problem:
    told = f"this row's shape is {row.shape}, that of line {first} is {shape}; a file has rows of one shape"
    return Problem(row.line, told, shapes.MARKS[row.shape][0])


def reader(format: Format, columns: Columns | None) -> Reader:  # noqa: A002
    """For all formats that can be read from their beginning."""
    if format == "text":
        return PlainText()
    return Csv(columns) if format == "csv" else JsonLines(columns)


def _parquet(path: Path, columns: Columns | None) -> Iterator[Found]:
    try:
        from app import parquet  # a machine that trains on other formats needs no pyarrow
    except ModuleNotFoundError:
        return iter([DatasetError(1, "Parquet is read with pyarrow, which is not installed here")])
    return parquet.rows(path, columns)


def check(path: Path, format: Format, columns: Columns | None = None) -> Report:  # noqa: A002
    """The report of a file that is there as a whole."""
    tally = Tally()
    tally.take(find(path, format, columns))
    return tally.report(path.stat().st_size)


def find(path: Path, format: Format, columns: Columns | None = None) -> Iterator[Found]:  # noqa: A002
    """Every row, bad ones as errors."""
    with path.open("rb") as file:
        head = file.read(len(PARQUET))
        try:
            found = recognise(head, format)
        except DatasetError as error:
            yield error
            return
        if found == "parquet":
            yield from _parquet(path, columns)
            return
        source, chunk = reader(found, columns), head
        while chunk:
            yield from source.feed(chunk)
            chunk = file.read(min(CHUNK, lines.PIECE_CHARACTERS))
        yield from source.finish()


def read(path: Path, format: Format, columns: Columns | None = None) -> Iterator[Example]:  # noqa: A002
    """The examples of a file in constant memory. Raises DatasetError at the first bad row, OSError."""
    for row in find(path, format, columns):
        if isinstance(row, DatasetError):
            raise row
        yield row.example


def in_batches(examples: Iterable[Example], rows: int, characters: int) -> Iterator[list[Example]]:
    """Lists of at most so many examples, and of little more than so many characters of text."""
    batch: list[Example] = []
    held = 0
    for example in examples:
        batch.append(example)
        held += len(example.text) if isinstance(example, Text) else 1_000
        if held > characters or len(batch) >= rows:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
