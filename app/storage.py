"""Bytes by key, in a folder: files, checkpoints, models. Written under a temporary name, then renamed.

Keys are made by us (`files/<id>`, `jobs/<id>/e<epoch>/…`, `models/<id>`), never by users.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from app.errors import StorageLow

CHUNK = 1024 * 1024


class Upload:
    """A file being written: it appears under its key on `commit`, and leaves nothing when abandoned."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
        self._hash = hashlib.sha256()
        self._file: BinaryIO
        self.bytes = 0

    def __enter__(self) -> Self:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("xb")
        return self

    def write(self, data: bytes) -> None:
        """Raises OSError, ENOSPC when the disk is full."""
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    @property
    def path(self) -> Path:
        """Where the bytes lie until the commit; `flush` before anybody else reads them."""
        return self._temporary

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def commit(self) -> None:
        """On return the bytes survive a power cut: file, then its folder, are forced to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.rename(self._target)
        sync_folder(self._target.parent)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries (new names, renames) to disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Store:
    """A local folder of objects."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where a key's bytes lie. Raises ValueError for a key that would leave the store, be it by a link
        that lies in it."""
        path = (self.root / key).absolute()
        real = path.resolve()
        if ".." in Path(key).parts or not (
            path.is_relative_to(self.root) and real.is_relative_to(self.root.resolve())
        ):
            raise ValueError(f"not a key of this store: {key!r}")
        return path

    def upload(self, key: str) -> Upload:
        return Upload(self.path(key))

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of an object in chunks of at most 1 MiB. Raises FileNotFoundError at the first one."""
        with self.path(key).open("rb") as file:
            file.seek(start)
            left = length
            while left is None or left > 0:
                data = file.read(CHUNK if left is None else min(CHUNK, left))
                if not data:
                    return
                left = None if left is None else left - len(data)
                yield data

    def read_manifest(self, key: str) -> dict[str, Any]:
        """What `manifest.json` of a folder says. Raises FileNotFoundError."""
        manifest: dict[str, Any] = json.loads((self.path(key) / "manifest.json").read_text())
        return manifest

    def adopt(self, folder: Path, key: str) -> None:
        """Move a finished folder of the same disk into the store; all at once, or not at all."""
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        sync_folder(target.parent)

    def delete(self, key: str) -> None:
        """Remove an object or a whole folder of them; renamed first, so that no reader meets half of it.

        Raises OSError; asked again it goes on with what a crash left.
        """
        path = self.path(key)
        doomed = path.with_name(f".deleted-{path.name}")
        if doomed.exists():
            _remove(doomed)
        with contextlib.suppress(FileNotFoundError):
            path.rename(doomed)
            _remove(doomed)

    def refuse_low_space(self, least: int) -> None:
        """Raises StorageLow with less than `least` bytes free: before what is running would be hurt."""
        self.root.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.root).free < least:
            raise StorageLow(
                f"Less than {least:,} bytes of disk are free; delete files, models or jobs first."
            )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
