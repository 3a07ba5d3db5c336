"""Objects of a store copied into a folder and back, each with the SHA-256 of what was copied."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from app.backup.snapshot import BackupError
from app.storage import CHUNK, MANIFEST, Store


class Copied(NamedTuple):
    """One object."""

    bytes: int
    sha256: str


def walk(store: Store, key: str) -> Iterator[str]:
    """The keys of all objects of a key, itself or a folder; none where there is nothing. Manifests last."""
    try:
        there = store.has(key)
    except ValueError:
        return  # a link that leads out of the store, as a trainer may have planted it
    if there:
        yield key
        return
    for name in sorted(store.names(key), key=lambda name: (name == MANIFEST, name)):
        if not name.startswith("."):  # being written, or about to go
            yield from walk(store, f"{key}/{name}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_out(store: Store, key: str, folder: Path) -> Copied:
    """Raises OSError, FileNotFoundError."""
    target = folder / key
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as file:
        try:
            for chunk in store.read(key):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        except FileNotFoundError:
            target.unlink()
            raise
    return Copied(size, digest.hexdigest())


def copy_in(store: Store, key: str, folder: Path, expected: Copied) -> None:
    """Raises BackupError where the bytes are not those that were backed up, and leaves nothing then."""
    source = folder / key
    try:
        store.check(key)
    except ValueError:
        raise BackupError(f"The backup is damaged: {key!r} leads out of it.") from None
    if not source.is_file():
        raise BackupError(f"The backup is damaged: {source} is missing.")
    # What goes to a bucket leaves no copy here, where there may be no room for all of it.
    with source.open("rb") as file, store.upload(key, keep=False) as upload:
        while data := file.read(CHUNK):
            upload.write(data)
        if Copied(upload.bytes, upload.sha256) != expected:
            raise BackupError(f"The backup is damaged: {source} is not what was backed up.")
        upload.commit()
