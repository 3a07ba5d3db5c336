"""The store that is a local folder. Written under a temporary name, then renamed."""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from app.storage import CHUNK, Store, Upload, refuse_low_space, sync_folder


class Folder(Store):
    """The store that is a local folder, or one that machines share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where a key's bytes lie. Raises ValueError for a key that would leave the store, or by a link that
        lies in it the file, model or job that it belongs to: the others may be somebody else's."""
        path, parts = (self.root / key).absolute(), Path(key).parts
        own = self.root.resolve().joinpath(*parts[:2])
        if ".." in parts or not (path.is_relative_to(self.root) and path.resolve().is_relative_to(own)):
            raise ValueError(f"not a key of this store: {key!r}")
        return path

    def _entry(self, key: str) -> Path:
        """The same for what is looked at or removed as it lies there: it may be a link itself, which is not
        followed. Raises ValueError."""
        folder, _, name = key.rpartition("/")
        if name in ("", ".", ".."):
            raise ValueError(f"not a key of this store: {key!r}")
        return self.path(folder) / name

    def check(self, key: str) -> None:
        self.path(key)

    def upload(self, key: str, keep: bool = True) -> Upload:
        return Upload(self.path(key))

    def put(self, key: str, data: bytes) -> None:
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        temporary.write_bytes(data)
        temporary.rename(path)

    def adopt(self, folder: Path, key: str) -> None:
        """Renamed: it must lie on the same disk."""
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        sync_folder(target.parent)

    def has(self, key: str) -> bool:
        return self.path(key).is_file()

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        with self.path(key).open("rb") as file:
            file.seek(start)
            left = length
            while left is None or left > 0:
                data = file.read(CHUNK if left is None else min(CHUNK, left))
                if not data:
                    return
                left = None if left is None else left - len(data)
                yield data

    def names(self, folder: str) -> list[str]:
        path = self._entry(folder)
        there = path.is_dir() and not path.is_symlink()
        return sorted(inner.name for inner in path.iterdir()) if there else []

    def age(self, key: str) -> float:
        """By what was made or renamed, down to the folder's second level."""
        path = self._entry(key)
        try:
            inner = [] if path.is_symlink() else [*path.glob("*"), *path.glob("*/*")]
            changed = [entry.lstat().st_mtime for entry in (path, *inner)]
        except FileNotFoundError:
            return 0.0
        return time.time() - max(changed)

    def delete(self, key: str) -> None:
        """Renamed first, so that no reader meets half of it."""
        path = self._entry(key)
        doomed = path.with_name(f".deleted-{path.name}")
        if os.path.lexists(doomed):
            _remove(doomed)
        with contextlib.suppress(FileNotFoundError):
            path.rename(doomed)
        _remove(doomed)

    def probe(self, write: bool = True) -> None:
        """A folder is made when it is needed."""

    def answers(self) -> bool:
        return True

    def place(self, key: str) -> Path | None:
        return self.path(key)

    def link(self, key: str) -> str | None:
        return None

    @contextlib.contextmanager
    def hold(self, key: str, sha256: str) -> Iterator[Path]:
        path = self.path(key)
        if not path.is_file():
            raise FileNotFoundError(key)
        yield path

    @contextlib.contextmanager
    def hold_folder(self, key: str) -> Iterator[Path]:
        path = self.path(key)
        if not path.is_dir():
            raise FileNotFoundError(key)
        yield path

    def scratch(self, key: str) -> Path:
        return self.path(key)

    def clear(self, key: str) -> None:
        """What was written there is the store's: app.litter removes what no row knows."""

    def sweep(self) -> None:
        """There are no copies."""

    def refuse_low_space(self, least: int) -> None:
        refuse_low_space(self.root, least)


def _remove(path: Path) -> None:
    """All of it is gone afterwards, also where another process removes the same meanwhile. Raises OSError."""
    while os.path.lexists(path):
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
