"""A file on its way to the service: not sent twice, and in parts where it is large.

A part that is lost on the way is sent again, and nothing before it; only the bytes that arrived count.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from app.terminal import screen
from app.terminal.jobs import pair_of
from app.terminal.outcome import Failure

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

LARGE = 64 * 1024**2  # bytes; what is larger goes in parts
PART = 16 * 1024**2  # bytes: what a broken line costs at most, and what is held in memory
MOST_PARTS = 10_000
LONGEST_PART = 64 * 1024**2  # bytes that the service takes at once
Tell = Callable[[int], None]


def upload(api: "Api", path: Path, columns: list[str], *, quiet: bool) -> "JsonObject":
    """The uploaded file; one with the same bytes, name and columns is taken as it is. Raises Failure."""
    named = dict(pair_of("--columns", pair) for pair in columns)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            there = _same(api, path.name, hashlib.file_digest(file, "sha256").hexdigest(), named)
            if there is not None:
                if not quiet:
                    screen.note(f"{path.name} is there already: {there['id']}")
                return there
            file.seek(0)
            with _bar(path.name, size, quiet) as tell:
                # An upload in parts has no place for the names of columns.
                if size > LARGE and not named:
                    return _send_in_parts(api, path.name, file, size, tell)
                fields = {"purpose": "fine-tune"} | {f"columns[{key}]": name for key, name in named.items()}
                return api.upload(fields, path.name, Watched(file, tell))
    except OSError as error:
        raise Failure(f"{path} cannot be read ({error.strerror}).") from None


def _same(api: "Api", name: str, sha256: str, columns: dict[str, str]) -> "JsonObject | None":
    for row in api.pages("/v1/files", 10_000, purpose="fine-tune"):
        alike = row["sha256"] == sha256 and row["filename"] == name and (row["columns"] or {}) == columns
        if alike and row["status"] == "processed":
            return row
    return None


def _send_in_parts(api: "Api", name: str, file: BinaryIO, size: int, tell: Tell) -> "JsonObject":
    """The file that the service makes of them. Raises Failure; what had arrived is then given up."""
    said = {"bytes": size, "filename": name, "mime_type": "application/octet-stream", "purpose": "fine-tune"}
    where = f"/v1/uploads/{api.post('/v1/uploads', said)['id']}"
    digest = hashlib.md5(usedforsecurity=False)
    parts: list[str] = []
    try:
        while data := file.read(min(LONGEST_PART, max(PART, -(-size // MOST_PARTS)))):
            digest.update(data)
            parts.append(str(api.send_part(f"{where}/parts", BytesIO(data))["id"]))
            tell(len(data))
        made = api.complete(f"{where}/complete", {"part_ids": parts, "md5": digest.hexdigest()})
    except BaseException:  # Ctrl-C too: its bytes would count against the key for an hour
        with suppress(Failure):
            api.post(f"{where}/cancel")
        raise
    if made["file"] is None:
        raise Failure(f"{name} arrived, and was deleted at once by somebody else.")
    found: JsonObject = made["file"]
    return found


@contextmanager
def _bar(name: str, size: int, quiet: bool) -> Iterator[Tell]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=screen.console(stderr=True),
        transient=True,
        disable=quiet or not screen.console(stderr=True).is_terminal,
    ) as bar:
        # The name is the server's to show; a terminal must not obey it here either.
        task = bar.add_task(f"Uploading {screen.plain(name)}".replace("[", r"\["), total=size)
        yield lambda count: bar.advance(task, count)


class Watched:
    """A file that tells how much of it has been read."""

    def __init__(self, file: BinaryIO, tell: Tell) -> None:
        self._file, self._tell = file, tell

    def read(self, count: int = -1) -> bytes:
        data = self._file.read(count)
        self._tell(len(data))
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
