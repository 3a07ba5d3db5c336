"""An object on its way to a client: from this machine's disk, from where it lies by a signed link to it, or
through this process."""

import asyncio
import re
from collections.abc import Iterator

from fastapi import Request
from fastapi.responses import FileResponse, RedirectResponse, Response, StreamingResponse

from app.errors import NotFound
from app.storage import Store

RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")  # beyond that no file is, and int() refuses what is long
OCTETS = "application/octet-stream"


async def send(request: Request, store: Store, key: str, size: int, sha256: str) -> Response:
    """Whole or one range of it; the ETag is its SHA-256. Raises NotFound, OSError before the first byte."""
    etag = f'"{sha256}"'
    path = store.place(key)
    if path is not None:
        return FileResponse(path, media_type=OCTETS, headers={"etag": etag})
    link = store.link(key)
    if link is not None:
        # Nobody may keep an answer that is over in minutes; the service there knows ranges by itself.
        return RedirectResponse(link, 307, {"cache-control": "no-store"})
    headers = {"etag": etag, "accept-ranges": "bytes"}
    start, end = 0, size
    asked = request.headers.get("range")
    if asked is not None and request.headers.get("if-range", etag) == etag:
        match = RANGE.fullmatch(asked.strip())
        # Several ranges, or another unit: whoever cannot serve a range sends everything (RFC 9110, 14.2).
        if match is not None and any(match.groups()):
            start, end = _ends(match[1], match[2], size)
            if start >= end:
                return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
            headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    chunks = await begun(store.read(key, start, end - start))
    return StreamingResponse(
        chunks,
        status_code=206 if "content-range" in headers else 200,
        media_type=OCTETS,
        headers={**headers, "content-length": str(end - start)},
    )


def _ends(first: str, last: str, size: int) -> tuple[int, int]:
    """Where a range begins and ends, the end excluded; `-5` is the last five bytes."""
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


async def begun(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, the first of them read: what fails by then can still be told by a status."""
    try:
        first = await asyncio.to_thread(next, chunks, b"")
    except FileNotFoundError as error:
        raise NotFound("These bytes are gone.") from error

    def all_of_them() -> Iterator[bytes]:
        yield first
        yield from chunks

    return all_of_them()
