"""A file on its way in, whole or in parts: written to the store and checked, chunk by chunk."""

import asyncio
import contextlib
import errno
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import timedelta

from app.auth import Caller
from app.dataset import Checker, Columns, Problem, Report
from app.errors import InvalidRequest, ServiceError, StorageLow, TooLarge
from app.inspection.inspector import Inspector
from app.layout import columns_of, format_asked
from app.storage import Store
from app.tables import File, now

PURPOSES = ("fine-tune", "assistants", "batch", "vision", "user_data", "evals")
EXPIRES_SECONDS = (3600, 2_592_000)
CHECK_SECONDS = 300  # for a table of 8 GiB
KEPT_PROBLEMS = 20  # lines of a bad file told in status_details


class Incoming:
    """A file being received, off the event loop: it appears when `finish` has been awaited, and leaves
    nothing when the context is left by an exception.

        async with Incoming(store, limit, inspector) as incoming:
            incoming.begin(filename)
            await incoming.take(data)
            session.add(await incoming.finish(caller, purpose, expires))
    """

    def __init__(self, store: Store, limit: int, inspector: Inspector) -> None:
        self.file_id = f"file-{secrets.token_hex(12)}"
        self.key = f"files/{self.file_id}"
        self.limit = limit
        self.refusal: ServiceError = TooLarge(f"A file may have {limit:,} bytes.", param="file")
        self.filename = "upload"
        self._columns: Columns | None = None
        self._checker = Checker("jsonl")
        self._store, self._inspector = store, inspector
        self._upload = store.upload(self.key)
        self._committed = False  # or about to be

    async def __aenter__(self) -> "Incoming":
        self._upload.__enter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._upload.__exit__(None, None, None)
        if kind is not None and self._committed:
            with contextlib.suppress(OSError):  # app.litter finds it
                await self.discard()

    async def discard(self) -> None:
        """Remove a file that is finished, but is not wanted."""
        await asyncio.to_thread(self._store.delete, self.key)

    def begin(self, filename: str, fields: Mapping[str, str] | None = None) -> None:
        """`fields` may say how it is to be read (app.layout). Raises InvalidRequest for nonsense."""
        self.filename = filename or "upload"
        self._columns = columns_of(fields or {})
        self._checker = Checker(format_asked(self.filename, (fields or {}).get("format")), self._columns)

    async def take(self, data: bytes) -> None:
        """The next bytes, cut anywhere. Raises `refusal` beyond the limit; StorageLow."""
        if self._upload.bytes + len(data) > self.limit:
            raise self.refusal
        with disk_full_told():
            await asyncio.to_thread(self._take, data)

    def _take(self, data: bytes) -> None:
        self._upload.write(data)
        self._checker.feed(data)

    async def finish(self, caller: Caller, purpose: str, expires: timedelta | None) -> File:
        """The bytes are on disk under their key; the row says what is in them, and is yet to be added.

        Raises InvalidRequest for a file without a byte.
        """
        if self._upload.bytes == 0:
            raise InvalidRequest("The file is empty.", param="file", code="empty_file")
        report = await asyncio.to_thread(self._checker.finish)
        if purpose == "fine-tune" and self._checker.is_whole_needed:
            report = await self._look()
        bad = _describe(report) if purpose == "fine-tune" else None
        self._committed = True
        with disk_full_told():
            await asyncio.to_thread(self._upload.commit)
        return File(
            id=self.file_id,
            owner=caller.owner,
            key_id=caller.key_id,
            key=self.key,
            bytes=self._upload.bytes,
            sha256=self._upload.sha256,
            filename=self.filename,
            purpose=purpose,
            format=self._checker.format,
            shape=report.shape,
            columns=self._columns,
            status="error" if bad else "processed",
            status_details=bad,
            problems=[asdict(problem) for problem in report.problems] if bad else None,
            rows=report.rows,
            expires_at=None if expires is None else now + expires,
        )

    async def _look(self) -> Report:
        """What a process of its own finds in a file that can only be read as a whole."""
        with disk_full_told():
            await asyncio.to_thread(self._upload.flush)
        path = str(self._upload.path)
        try:
            found = await self._inspector.ask(
                "check", CHECK_SECONDS, path=path, format=self._checker.format, columns=self._columns
            )
        except InvalidRequest as error:
            return Report(0, self._upload.bytes, [Problem(1, error.message)], 1)
        return Report(**{**found, "problems": [Problem(**problem) for problem in found["problems"]]})


@contextlib.contextmanager
def disk_full_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageLow("The disk is full; the upload was not kept.") from error
        raise


def _describe(report: Report) -> str | None:
    if not report.problems:
        return None
    told = [f"line {problem.line}: {problem.message}" for problem in report.problems[:KEPT_PROBLEMS]]
    more = report.problem_count - len(told)
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")
