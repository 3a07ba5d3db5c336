"""The home folder, the disk, shared memory."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from app.settings import GIB, Settings
from app.terminal import screen
from app.terminal.checkup.verdict import Verdict

COMFORT = 10 * GIB  # bytes of disk below which a few models are too many
SHARED_LEAST = 256 * 1024**2  # bytes; Docker gives 64 MiB, and several devices need more
SHARED = Path("/dev/shm")  # noqa: S108  # looked at, not written to


def home(settings: Settings) -> Iterator[Verdict]:
    folder = settings.home
    if not folder.exists():
        parent = next(parent for parent in folder.parents if parent.exists())
        if os.access(parent, os.W_OK):
            yield Verdict("home", "note", f"{folder} is made by the first `finetuned up`")
        else:
            yield Verdict(
                "home",
                "fail",
                f"{folder} cannot be made in {parent}",
                "set FINETUNED_HOME to a folder of yours",
            )
        return
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Verdict(
            "home", "fail", f"{folder} cannot be written to", "set FINETUNED_HOME to a folder of yours"
        )
        return
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        yield Verdict(
            "home", "warn", f"{folder} is open to others (mode {mode:03o})", f"chmod 700 '{folder}'"
        )
    else:
        yield Verdict("home", "ok", str(folder))
    if settings.key_file.exists() and (mode := stat.S_IMODE(settings.key_file.stat().st_mode)) & 0o077:
        mend = f"chmod 600 '{settings.key_file}', and revoke the key if others were on this machine"
        yield Verdict("home", "fail", f"{settings.key_file} can be read by others (mode {mode:03o})", mend)


def disk(settings: Settings) -> Iterator[Verdict]:
    folder = settings.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    told = f"{screen.size(free)} free at {folder}"
    mend = "delete files and models (`finetuned models delete`), or set FINETUNED_HOME to a larger disk"
    if free < settings.min_free_bytes:
        yield Verdict("disk", "fail", f"{told}: files and jobs are refused (FINETUNED_MIN_FREE_BYTES)", mend)
    else:
        yield Verdict("disk", "warn" if free < COMFORT else "ok", told, mend if free < COMFORT else None)


def shared_memory() -> Iterator[Verdict]:
    if not SHARED.exists():
        yield Verdict("shared memory", "note", "this system has no /dev/shm")
        return
    free = shutil.disk_usage(SHARED).free
    told = f"{screen.size(free)} free in /dev/shm"
    if free < SHARED_LEAST:
        mend = "start the container with --shm-size 1g; needed where a job trains on several devices"
        yield Verdict("shared memory", "warn", told, mend)
    else:
        yield Verdict("shared memory", "ok", told)
