"""Bytes that arrive in chunks, cut into the lines, records and documents of a file; memory does not grow."""

import codecs
from collections.abc import Iterator

MAX_LINE_BYTES = 1_000_000
SEPARATOR = "<|endoftext|>"  # between the documents of a plain text file
PIECE_CHARACTERS = 1_000_000  # a longer document comes in pieces
MAX_WORD_CHARACTERS = 4_000_000  # with no place to cut in between


class Lines:
    """Numbers lines from 1; one over the limit is told as None and its bytes are not kept."""

    def __init__(self) -> None:
        self._number, self._kept, self._skipping = 0, bytearray(), False

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The lines that end in this chunk, without their line breaks."""
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            self._keep(chunk[start:end])
            yield self._end()
            start = end + 1
        self._keep(chunk[start:])

    def finish(self) -> Iterator[tuple[int, bytes | None]]:
        """The last line, where no line break ended it."""
        if self._kept or self._skipping:
            yield self._end()

    def _keep(self, part: bytes) -> None:
        if self._skipping or len(self._kept) + len(part) > MAX_LINE_BYTES:
            self._skipping = True
            self._kept.clear()
        else:
            self._kept += part

    def _end(self) -> tuple[int, bytes | None]:
        self._number += 1
        line = None if self._skipping else bytes(self._kept)
        self._kept.clear()
        self._skipping = False
        return self._number, line


class Records:
    """Lines joined into records of CSV, numbered by their first lines: one goes on while a quotation mark is
    open. They come in pairs within a record (a doubled one stands for itself), so counting tells."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._first, self._kept, self._open, self._long = 0, bytearray(), False, False

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes | None]]:
        for number, line in self._lines.feed(chunk):
            yield from self._take(number, line)

    def finish(self) -> Iterator[tuple[int, bytes | None]]:
        for number, line in self._lines.finish():
            yield from self._take(number, line)
        if self._open:
            yield self._first, bytes(self._kept)

    def _take(self, number: int, line: bytes | None) -> Iterator[tuple[int, bytes | None]]:
        if self._open and line is not None:
            self._kept += b"\n" + line
        else:
            self._first, self._kept = (self._first if self._open else number), bytearray(line or b"")
        self._open ^= bool((line or b"").count(b'"') % 2)
        if line is None or len(self._kept) > MAX_LINE_BYTES:
            self._open = False
            yield self._first, None
        elif not self._open:
            yield self._first, bytes(self._kept)


class NotText(ValueError):
    """Bytes that are no text in UTF-8; `line` is theirs."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line, self.message = line, message


class Piece:
    """A document, or the next part of one, and the line it begins in."""

    __slots__ = ("first", "last", "line", "text")

    def __init__(self, line: int, text: str, first: bool, last: bool) -> None:
        self.line, self.text, self.first, self.last = line, text, first, last


class Documents:
    """A plain text is one document, unless the separator occurs."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._line, self._rest = 1, ""
        self._within = self._begun = False

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        """The documents that end in this chunk, and pieces of one that is long. Raises NotText."""
        yield from self._ended(chunk, final=False)
        if len(self._rest) < PIECE_CHARACTERS:
            return
        if at := _cut(self._rest):
            yield self._piece(self._rest[:at], last=False)
            self._rest = self._rest[at:]
        elif len(self._rest) > MAX_WORD_CHARACTERS:
            raise NotText(self._line, f"{MAX_WORD_CHARACTERS:,} characters without a space or line break")

    def finish(self) -> Iterator[Piece]:
        """The last document. Raises NotText."""
        yield from self._ended(b"", final=True)
        if self._rest.strip() or self._within or not self._begun:
            yield self._piece(self._rest, last=True)

    def _ended(self, chunk: bytes, final: bool) -> Iterator[Piece]:
        text, trouble = self._decode(chunk, final)
        self._rest += text
        *ended, self._rest = self._rest.split(SEPARATOR)
        for document in ended:
            yield self._piece(document, last=True)
        if trouble is not None:
            raise NotText(self._line + self._rest.count("\n"), trouble)

    def _decode(self, chunk: bytes, final: bool) -> tuple[str, str | None]:
        """What of the bytes is text, and what is wrong with those after it."""
        try:
            text, trouble = self._decoder.decode(chunk, final), None
        except UnicodeDecodeError as error:
            text, trouble = error.object[: error.start].decode(), not_utf8(error)
        if (at := text.find("\0")) >= 0:
            return text[:at], "a NUL byte, which is no text; is the file UTF-16 or binary?"
        return text, trouble

    def _piece(self, text: str, last: bool) -> Piece:
        found = Piece(self._line, text, not self._within, last)
        self._line += text.count("\n")
        self._within, self._begun = not last, True
        return found


def not_utf8(error: UnicodeDecodeError) -> str:
    """What to tell of bytes that are not UTF-8."""
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}); save the file as UTF-8"


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
