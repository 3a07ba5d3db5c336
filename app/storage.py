"""Bytes by key: files, checkpoints, models. What every kind of store promises; `app.folder` and `app.bucket`
are the two.

Keys are made by us (`files/<id>`, `jobs/<id>/e<epoch>/…`, `models/<id>`), never by users, and in every store
the same. An object appears whole or not at all and never changes; a folder of objects is there once its
manifest is, which is put last and names the SHA-256 of all others.
"""

import hashlib
import json
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from app.errors import StorageLow
from app.settings import Settings

CHUNK = 1024 * 1024
MANIFEST = "manifest.json"


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


class Store(ABC):
    """Objects by key, the same for every process of the service.

    Programs that want a path (trainer, generator, inspector) get one by `hold` and `scratch`, in `root`, a
    folder of this machine: the store itself where it is one, else copies of what is in it.
    """

    root: Path

    @abstractmethod
    def check(self, key: str) -> None:
        """Raises ValueError for a key that would leave the store."""

    @abstractmethod
    def upload(self, key: str, keep: bool = True) -> Upload:
        """A new object, to be written piece by piece. `keep`: it will soon be read on this machine."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """A small object at once. It can be made again: a power cut may cost it. Raises OSError."""

    @abstractmethod
    def adopt(self, folder: Path, key: str) -> None:
        """A finished folder with a manifest becomes the store's, all at once or not at all. Raises OSError.

        The folder must not be written to any more; whether it still lies where it was is left open.
        """

    @abstractmethod
    def has(self, key: str) -> bool:
        """Whether there is an object of that key. Raises OSError where that cannot be known now."""

    @abstractmethod
    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes of an object in chunks of about 1 MiB. Raises FileNotFoundError at the first one."""

    def get(self, key: str) -> bytes:
        """A small object whole. Raises FileNotFoundError."""
        return b"".join(self.read(key))

    def read_manifest(self, key: str) -> dict[str, Any]:
        """What the manifest of a folder says. Raises FileNotFoundError: there is no such folder."""
        manifest: dict[str, Any] = json.loads(self.get(f"{key}/{MANIFEST}"))
        return manifest

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder, objects and folders, sorted."""

    @abstractmethod
    def age(self, key: str) -> float:
        """Seconds since anything of an object or folder was made; 0 when it is gone."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object or a whole folder of them. Raises OSError; asked again it goes on."""

    @abstractmethod
    def probe(self, write: bool = True) -> None:
        """Whether the store can be used at all, asked when a program starts: raises StoreRefused, StoreAway.

        `write`: not only read.
        """

    @abstractmethod
    def answers(self) -> bool:
        """Whether it does now, within two seconds."""

    @abstractmethod
    def place(self, key: str) -> Path | None:
        """Where an object lies, in a store that is a folder of this machine; None: it must be read."""

    @abstractmethod
    def link(self, key: str) -> str | None:
        """Where a client gets the object by itself, for the next minutes; None: only through us."""

    @abstractmethod
    def hold(self, key: str, sha256: str) -> AbstractContextManager[Path]:
        """A file of this machine with the object's bytes, which stays for as long as the context.

        Raises FileNotFoundError, OSError; Damaged where copied bytes are not those of `sha256`.
        """

    @abstractmethod
    def hold_folder(self, key: str) -> AbstractContextManager[Path]:
        """The same for a folder and its manifest."""

    def fetch(self, key: str, sha256: str) -> Path:
        """As `hold`, for a look that is over within the hour."""
        with self.hold(key, sha256) as path:
            return path

    def fetch_folder(self, key: str) -> Path:
        """As `hold_folder`, for a look that is over within the hour."""
        with self.hold_folder(key) as path:
            return path

    @abstractmethod
    def scratch(self, key: str) -> Path:
        """Where on this machine a program writes what `adopt` shall put under `key`, or may cache."""

    @abstractmethod
    def clear(self, key: str) -> None:
        """What a program wrote below `scratch(key)` is wanted no more; what `adopt` took stays."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove copies that are not used any more."""

    @abstractmethod
    def refuse_low_space(self, least: int) -> None:
        """Raises StorageLow with less than `least` bytes free: before what is running would be hurt."""


class Damaged(OSError):
    """Bytes that are not those which their hash was made of."""


class StoreAway(OSError):
    """The store does not answer; it may in a while."""


class StoreRefused(StoreAway):
    """The store does not let us do our work; the message names the setting at fault."""


def refuse_low_space(folder: Path, least: int) -> None:
    """Raises StorageLow."""
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < least:
        raise StorageLow(f"Less than {least:,} bytes of disk are free; delete files, models or jobs first.")


def open_store(settings: Settings) -> Store:
    """The store of these settings. Raises StoreRefused where it cannot be one."""
    if settings.store is None:
        from app.folder import Folder

        return Folder(settings.storage_folder)
    try:
        from app.bucket import Bucket  # its client is loaded only where there is a bucket
    except ImportError as error:
        raise StoreRefused("FINETUNED_STORE needs the package obstore: install finetuned[s3].") from error
    return Bucket(settings)
