"""Parts become a file: read in their order, a chunk at a time, checked and hashed on the way."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence

from app.errors import InvalidRequest
from app.incoming import Incoming
from app.storage import Store
from app.uploads.rows import Upload, UploadPart


def part_key(upload_id: str, part_id: str) -> str:
    return f"{folder_key(upload_id)}/{part_id}"


def folder_key(upload_id: str) -> str:
    return f"uploads/{upload_id}"


class PartsGone(Exception):
    """The upload came to an end while its parts were read."""


async def compose(
    store: Store, upload: Upload, parts: Sequence[UploadPart], md5: str | None, incoming: Incoming
) -> None:
    """Feed the parts to `incoming`, 1 MiB in memory at a time.

    Raises PartsGone; InvalidRequest where the bytes are not those that `md5` was made of; StorageLow.
    """
    incoming.begin(upload.filename)
    digest = hashlib.md5(usedforsecurity=False)  # OpenAI's choice; what we keep is a SHA-256
    chunks = _chunks(store, upload.id, parts)
    while True:
        try:
            chunk = await asyncio.to_thread(next, chunks, None)
        except FileNotFoundError as error:
            raise PartsGone from error
        if chunk is None:
            break
        await asyncio.to_thread(digest.update, chunk)
        await incoming.take(chunk)
    if md5 is not None and digest.hexdigest() != md5.lower():
        raise InvalidRequest(
            "The parts in this order do not have that md5; send the right ones, or their right order.",
            param="md5",
            code="md5_mismatch",
        )


def _chunks(store: Store, upload_id: str, parts: Sequence[UploadPart]) -> Iterator[bytes]:
    for part in parts:
        yield from store.read(part_key(upload_id, part.id))
