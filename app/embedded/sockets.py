"""The private socket folder: the only thing `finetuned up` has outside its home.

A socket's path is limited to about 100 characters, so it cannot live below an arbitrary home.
"""

import os
import shutil
import stat
import tempfile
from pathlib import Path

PREFIX = "finetuned-"
LONGEST_PATH = 100  # bytes; the kernel's limit is 108 on Linux, 104 elsewhere


def create(record: Path) -> Path:
    """A new folder of mode 0700, its path kept in `record`; the one that a killed `up` left there goes."""
    remove(record)
    # mkdtemp makes a name that nobody can have made before us.
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_place()))
    written = record.with_suffix(".new")
    written.write_text(str(folder))
    written.rename(record)
    return folder


def remove(record: Path) -> None:
    """Remove the recorded folder, if it is one of ours, and the record."""
    try:
        folder = Path(record.read_text())
    except FileNotFoundError:
        return
    if folder.name.startswith(PREFIX) and _private(folder):
        shutil.rmtree(folder, ignore_errors=True)
    record.unlink(missing_ok=True)


def _place() -> Path:
    """The session's own folder where there is one, else the temporary folder, else a shorter one."""
    session = Path(f"/run/user/{os.getuid()}")
    if _private(session) and os.access(session, os.W_OK):
        return session
    temporary = Path(tempfile.gettempdir())
    longest = temporary / f"{PREFIX}12345678" / ".s.PGSQL.5432.lock"
    return temporary if len(os.fsencode(longest)) <= LONGEST_PATH else Path("/tmp")  # noqa: S108 - by mkdtemp


def _private(folder: Path) -> bool:
    """A real folder, ours, that nobody else can enter."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
