"""Copies of what lies in a remote store, on this machine's disk: filled once, held while they are read.

Each copy has a folder with a lock file. Whoever reads holds the lock shared, whoever fills or removes holds
it alone; the kernel lets go of it when a process dies, so that nothing waits for the dead. A copy bears its
name only when it is whole: killed in the middle, a process leaves a folder that the next one to fill removes.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote

import structlog

log = structlog.get_logger()
LOCK = ".lock"
# Of a copy that was asked for and let go of at once: as long as the longest look into a file takes.
RECENT = 900.0  # seconds
# What is deleted in the store is not read any more: then its copies on other machines go, too.
UNUSED = 24 * 3600.0  # seconds


class Copies:
    """At most `limit` bytes, but for what is held or was asked for a moment ago."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit

    @contextlib.contextmanager
    def hold(self, key: str, fill: Callable[[Path], None]) -> Iterator[Path]:
        """The copy, which stays for as long as the context; `fill` makes a missing one at a path it is given,
        in one process at a time. Raises what `fill` raises."""
        entry = self._entry(key)
        content = entry / _name(key)
        while True:
            with _locked(entry, fcntl.LOCK_SH):
                if content.exists():
                    os.utime(entry / LOCK)
                    yield content
                    return
            with _locked(entry, fcntl.LOCK_EX):
                if not content.exists():
                    self._fill(entry, content, fill)
            self.sweep()

    def _fill(self, entry: Path, content: Path, fill: Callable[[Path], None]) -> None:
        for left in entry.glob(".filling-*"):
            _remove(left)
        temporary = entry / f".filling-{secrets.token_hex(4)}"
        try:
            fill(temporary)
            temporary.rename(content)
            os.utime(entry / LOCK)
        except BaseException:
            _remove(entry)
            raise

    def admit(self, key: str, source: Path) -> None:
        """A copy of what lies here anyway: links, which take no space. It is worth no failure."""

        def link(target: Path) -> None:
            if source.is_dir():
                shutil.copytree(source, target, copy_function=os.link)
            else:
                os.link(source, target)

        with contextlib.suppress(OSError):
            self.forget(key)
            with self.hold(key, link):
                pass

    def forget(self, key: str) -> None:
        """Remove the copies of a key and of all below it, save those that are held."""
        name = quote(key, safe="")
        for entry in self._entries():
            if entry.name == name or entry.name.startswith(f"{name}%2F"):
                self._evict(entry)

    def sweep(self) -> None:
        """Remove what nobody has used for a day; and what was not used for longest, until the rest fits."""
        found = []
        for entry in self._entries():
            with contextlib.suppress(FileNotFoundError):
                found.append(((entry / LOCK).stat().st_mtime, entry, _size(entry)))
        used, now = sum(size for _, _, size in found), time.time()
        for at, entry, size in sorted(found):
            idle = now - at
            if idle > UNUSED or (used > self._limit and idle > RECENT):
                used -= size * self._evict(entry)

    def _evict(self, entry: Path) -> bool:
        """Whether it went."""
        try:
            with _locked(entry, fcntl.LOCK_EX | fcntl.LOCK_NB):
                log.info("copy_removed", key=unquote(entry.name))
                _remove(entry)
        except BlockingIOError:
            return False
        return True

    def _entries(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []

    def _entry(self, key: str) -> Path:
        return self._folder / quote(key, safe="")


def _name(key: str) -> str:
    return key.rpartition("/")[2]


@contextlib.contextmanager
def _locked(entry: Path, mode: int) -> Iterator[None]:
    """The lock of a copy's folder, which is made where it is not. Raises BlockingIOError with LOCK_NB."""
    handle = _lock(entry, mode)
    try:
        yield
    finally:
        os.close(handle)


def _lock(entry: Path, mode: int) -> int:
    while True:
        try:
            entry.mkdir(parents=True, exist_ok=True)
            handle = os.open(entry / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except (FileNotFoundError, FileExistsError):  # removed in this moment
            if entry.is_file():
                raise
            continue
        try:
            fcntl.flock(handle, mode)
            # Who waited for a lock may have got that of a folder which was removed meanwhile.
            if os.stat(entry / LOCK).st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _size(entry: Path) -> int:
    return sum(path.lstat().st_size for path in entry.rglob("*") if not path.is_dir())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # The lock goes last: until then, others wait for it.
        for inner in path.iterdir():
            if inner.name != LOCK:
                _remove(inner)
        (path / LOCK).unlink(missing_ok=True)
        try:
            path.rmdir()
        except OSError as error:
            # The next one has put its lock here, or has removed even that: no longer ours.
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
    else:
        path.unlink()
