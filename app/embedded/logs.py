"""The programs' logs, `<home>/logs/<program>.log`: one run back is kept, and none may fill the disk."""

import shutil
from pathlib import Path

LARGEST = 50 * 1024**2  # bytes; a log that grows past this in one run moves to `.1` and starts anew


def rotate(folder: Path) -> None:
    """A new run starts with empty logs; the run before is in `<program>.log.1`."""
    for log in folder.glob("*.log"):
        log.rename(log.with_name(f"{log.name}.1"))


def trim(folder: Path, largest: int = LARGEST) -> None:
    """Empty what has grown too large, a copy kept; its program goes on appending to the same file."""
    for log in folder.glob("*.log"):
        if log.stat().st_size > largest:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            with log.open("r+b") as file:
                file.truncate(0)
