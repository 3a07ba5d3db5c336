"""The rows of a file as it arrives, good and bad: the check of an upload and the training read them alike.

A reader takes chunks cut anywhere; a bad row is told as a DatasetError among the others, not raised.
"""

import codecs
import csv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from app import shapes, strict_json
from app.examples import DatasetError, Example, Text
from app.lines import MAX_LINE_BYTES, Documents, Lines, NotText, Piece, Records, not_utf8
from app.shapes import Shape

Columns = Mapping[str, str]  # our key to the file's own name for it
# Keys whose values are no strings: in a table their cells hold JSON.
STRUCTURED = ("messages", "conversations", "tools", *shapes.MARKS["preference"])
MARKING = shapes.SHAPE_OF.keys()
KEYS = (*MARKING, "input", "system", "history", "tools")
csv.field_size_limit(MAX_LINE_BYTES)


class Row(NamedTuple):
    """A sound row."""

    line: int
    shape: Shape
    example: Example


Found = Row | DatasetError


class Reader(Protocol):
    """`finish` is called once, after the last chunk."""

    def feed(self, chunk: bytes) -> Iterator[Found]: ...
    def finish(self) -> Iterator[Found]: ...


def named(number: int, row: Any, columns: Columns | None) -> Any:
    """The row under our keys. Raises DatasetError where a column that was named is not there."""
    if not columns or not isinstance(row, dict):
        return row
    for ours, theirs in columns.items():
        if theirs not in row and ours in MARKING:
            message = f'the row has no "{theirs}", which `columns` names for "{ours}"'
            raise DatasetError(number, message, theirs)
    return {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


def table_row(number: int, cells: dict[str, Any]) -> Row:
    """A row of a table: cells of structured keys hold JSON; of keys that may be left out, empty is absent."""
    row = dict(cells)
    structured = [*STRUCTURED, *(["input"] if any(key in row for key in shapes.MARKS["preference"]) else [])]
    for key in structured:
        if isinstance(row.get(key), str) and row[key].strip():
            try:
                row[key] = strict_json.loads(row[key])
            except strict_json.BadJson as error:
                raise DatasetError(number, f'"{key}" must hold JSON; {error.message}', key) from None
    for key in ("tools", "system", "history"):
        if row.get(key) in (None, ""):
            row.pop(key, None)
    return Row(number, *shapes.example(number, row))


class JsonLines:
    """A JSON object a line."""

    def __init__(self, columns: Columns | None) -> None:
        self._lines, self._columns, self._array = Lines(), columns, False

    def feed(self, chunk: bytes) -> Iterator[Found]:
        for number, line in self._lines.feed(chunk):
            yield from self._take(number, line)

    def finish(self) -> Iterator[Found]:
        for number, line in self._lines.finish():
            yield from self._take(number, line)

    def _take(self, number: int, line: bytes | None) -> Iterator[Found]:
        if self._array:  # told once, not for each of its lines
            return
        try:
            found = parse(number, line, self._columns)
        except DatasetError as error:
            self._array = number == 1 and (line or b"").lstrip(b"\xef\xbb\xbf \t").startswith(b"[")
            told = DatasetError(1, "a JSON array; write one object a line (JSON Lines)")
            yield told if self._array else error
            return
        if found is not None:
            yield found


def parse(number: int, line: bytes | None, columns: Columns | None = None) -> Row | None:
    """One line of a JSONL file; None for a blank one. Raises DatasetError. `line` None: it was too long."""
    if line is None or len(line) > MAX_LINE_BYTES:
        raise DatasetError(number, f"longer than {MAX_LINE_BYTES:,} bytes")
    text = _decoded(number, line).strip()
    if not text:
        return None
    try:
        row = strict_json.loads(text)
    except strict_json.BadJson as error:
        raise DatasetError(number, error.message, error.key) from None
    return Row(number, *shapes.example(number, named(number, row, columns)))


def _decoded(number: int, line: bytes) -> str:
    line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DatasetError(number, not_utf8(error)) from None


class Csv:
    """Comma-separated values as RFC 4180 has them, the first row naming the columns.

    Semicolons or tabs separate where the header has them and no comma.
    """

    def __init__(self, columns: Columns | None) -> None:
        self._records, self._columns = Records(), columns
        self._header: list[str] = []
        self._separator, self._hopeless = ",", False

    def feed(self, chunk: bytes) -> Iterator[Found]:
        for number, record in self._records.feed(chunk):
            yield from self._take(number, record)

    def finish(self) -> Iterator[Found]:
        for number, record in self._records.finish():
            yield from self._take(number, record)

    def _take(self, number: int, record: bytes | None) -> Iterator[Found]:
        if self._hopeless:
            return
        try:
            if record is None:
                unclosed = "; a quotation mark that is never closed?"
                raise DatasetError(number, f"longer than {MAX_LINE_BYTES:,} bytes{unclosed}")
            text = _decoded(number, record).removesuffix("\r")
            if not text.strip():
                return
            if self._header:
                yield self._row(number, self._cells(number, text))
            else:
                self._begin(number, text)
        except DatasetError as error:
            self._hopeless = not self._header  # rows under no names would all be told as wrong
            yield error

    def _begin(self, number: int, text: str) -> None:
        if "," not in text:
            self._separator = next((mark for mark in ("\t", ";") if mark in text), ",")
        header = [name.strip() for name in self._cells(number, text)]
        check_header(header, self._columns)
        self._header = header

    def _cells(self, number: int, text: str) -> list[str]:
        if "\0" in text:
            raise DatasetError(number, "a NUL byte, which is no text; is the file UTF-16 or binary?")
        try:
            return next(csv.reader([text], delimiter=self._separator, strict=True))
        except (csv.Error, StopIteration) as error:
            message = f"not CSV: {error}; a quotation mark inside a field is doubled, and the field quoted"
            raise DatasetError(number, message) from None

    def _row(self, number: int, cells: Sequence[str]) -> Row:
        if len(cells) != len(self._header):
            raise DatasetError(number, f"{len(cells)} cells under a header of {len(self._header)}")
        row = dict(zip(self._header, cells, strict=True))
        return table_row(number, named(number, row, self._columns))


def check_header(names: Sequence[str], columns: Columns | None) -> None:
    """Raises DatasetError for a table whose columns cannot be told, or hold nothing to train on."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(1, f'two columns are named "{twice[:100]}"', twice[:100])
    for ours, theirs in (columns or {}).items():
        if theirs not in names:
            message = f'no column is named "{theirs}", which `columns` names for "{ours}"'
            raise DatasetError(1, message, theirs)
    if not columns and not MARKING & set(names):
        had = ", ".join(f'"{name[:40]}"' for name in names[:10])
        message = f"no column has a name that is known ({shapes.SHAPES}); rename one or give `columns`"
        raise DatasetError(1, f"{message}; here: {had}")


class PlainText:
    """Documents without any form."""

    def __init__(self) -> None:
        self._documents, self._broken = Documents(), False

    def feed(self, chunk: bytes) -> Iterator[Found]:
        yield from self._told(self._documents.feed(chunk))

    def finish(self) -> Iterator[Found]:
        yield from self._told(self._documents.finish())

    def _told(self, pieces: Iterator[Piece]) -> Iterator[Found]:
        if self._broken:  # where it goes on cannot be known
            return
        try:
            for piece in pieces:
                yield Row(piece.line, "text", Text(piece.line, piece.text, piece.first, piece.last))
        except NotText as error:
            self._broken = True
            yield DatasetError(error.line, error.message)
