"""A multipart form, read as it arrives: fields are small and kept, the file's bytes are handed on at once.

FastAPI's own form parsing would first write the whole upload to a temporary file.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import InvalidRequest

MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 * 1024
MAX_HEADER_BYTES = 16 * 1024
BATCH = 1024 * 1024  # bytes handed on at a time: one hop to a thread for each


@dataclass
class _Part:
    name: str
    filename: str | None
    value: bytearray = field(default_factory=bytearray)


@dataclass
class Form:
    """What a form held besides the file's bytes."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


class _Reader:
    """Turns the parser's callbacks into a list of (part, bytes); a part's end is None."""

    def __init__(self, boundary: bytes) -> None:
        self.found: list[tuple[_Part, bytes | None]] = []
        self.done = False
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()
        self._part = _Part("", None)
        self._parts = 0
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header,
                "on_headers_finished": self._begin,
                "on_part_data": lambda data, start, end: self.found.append((self._part, data[start:end])),
                "on_part_end": lambda: self.found.append((self._part, None)),
                "on_end": self._end,
            },
        )

    def _header(self) -> None:
        if len(self._name) + len(self._value) > MAX_HEADER_BYTES:
            raise InvalidRequest("A part of the form has too long a header.", code="invalid_form")
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise InvalidRequest(f"The form has more than {MAX_FIELDS} parts.", code="invalid_form")
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name, filename = options.get(b"name"), options.get(b"filename")
        self._part = _Part(
            (name or b"").decode("utf-8", "replace"),
            # The SDK sends raw UTF-8 with %22 for a quotation mark.
            None if filename is None else unquote(filename.decode("utf-8", "replace")).replace("\0", ""),
        )

    def _end(self) -> None:
        self.done = True


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise InvalidRequest(
            "Send multipart/form-data with the fields `purpose` and `file`.", code="invalid_form"
        )
    return options[b"boundary"]


async def _found(request: Request, reader: _Reader) -> AsyncIterator[tuple[_Part, bytes | None]]:
    try:
        async for chunk in request.stream():
            reader.parser.write(chunk)
            for item in reader.found:
                yield item
            reader.found.clear()
    except FormParserError as error:
        raise InvalidRequest("The body is not valid multipart/form-data.", code="invalid_form") from error
    if not reader.done:
        raise InvalidRequest("The form ends before its last boundary: cut off?", code="invalid_form")


async def read_form(
    request: Request,
    file_field: str,
    begin: Callable[[str], None],
    take: Callable[[bytes], Awaitable[None]],
    form: Form | None = None,
) -> Form:
    """Read the form; `begin(filename)` is called once, then `take` with the file's bytes, about 1 MiB a time.

    Given a `form`, that one is filled: `begin` finds the fields that came before the file in it. Raises
    InvalidRequest for anything but a whole form with one file in the field `file_field`.
    """
    form, waiting = form or Form(), bytearray()
    the_file: _Part | None = None
    async for part, data in _found(request, _Reader(_boundary(request))):
        if part.filename is None or part.name != file_field:
            _keep(form, part, data)
            continue
        if the_file is None:
            the_file, form.filename = part, part.filename
            begin(part.filename)
        if part is not the_file:
            raise InvalidRequest("The form has more than one file; send one at a time.", param=file_field)
        waiting += data or b""
        if len(waiting) >= BATCH or (data is None and waiting):
            await take(bytes(waiting))
            waiting.clear()
    if form.filename is None:
        raise InvalidRequest(f"The form has no file in the field `{file_field}`.", param=file_field)
    return form


def _keep(form: Form, part: _Part, data: bytes | None) -> None:
    if data is None:
        form.fields[part.name] = part.value.decode("utf-8", "replace")
        return
    part.value += data
    if len(part.value) > MAX_FIELD_BYTES:
        raise InvalidRequest(f"The form field {part.name!r} is too long.", param=part.name)
