"""Which cell a worker's trainers get: what they may read and write, and what is hidden from them.

worker/training/cell.py builds it. Where the kernel or the container allows less, the worker says so when it
starts, and goes on with what is left or, where a cell is required, not at all.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import structlog

from app.settings import Settings
from app.storage import Store
from worker.training import cell as mechanism

log = structlog.get_logger()
PROCESSES = 1024 + 64 * (os.cpu_count() or 1)  # threads too: torch takes a few for each core
GIB = 1024**3
# A file of a job at most: fp32 optimizer state of half-precision weights is four times their size, token ids
# four times that of a text, and Parquet is compressed.
LARGEST_FILE, PER_INPUT_BYTE = 64 * GIB, 16
LEFT_ALONE = 7 * 86400.0  # seconds after which a temporary folder's process is surely gone
HIDDEN = ("/run",)  # sockets of the system's services, some of which obey whoever reaches them


@dataclass(frozen=True)
class Cell:
    """Folders by what may be done in them; `temporary` is where each trainer gets one of its own."""

    read: tuple[str, ...]
    write: tuple[str, ...]
    hide: tuple[str, ...]
    temporary: Path
    least_free: int
    required: bool = False
    network: bool = False
    several: bool = False  # processes train the job, which meet over a loopback

    def open(self) -> Path:
        """A temporary folder for one trainer."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        for folder in (*self.write, *self.read):
            if not os.path.exists(folder) and folder.startswith(str(self.temporary.parent)):
                os.makedirs(folder, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self.temporary, prefix="trainer-"))

    def command(self, program: Sequence[str], temporary: Path | None, **more: Any) -> list[str]:
        """The argument list that runs the program in here, tied to the thread that starts it."""
        order = {
            "parent": os.getpid(),
            "read": self.read,
            "write": [*self.write, *([str(temporary)] if temporary else [])],
            "hide": self.hide,
            "network": self.network,
            "several": self.several,
            "required": self.required,
            "processes": PROCESSES,
            **more,
        }
        return [sys.executable, "-I", "-S", str(Path(mechanism.__file__)), json.dumps(order), *program]

    def limits(self, line: dict[str, Any]) -> dict[str, Any]:
        """What a job's line says beside its paths: how large a file of it may become, in bytes."""
        read = [line.get(name) for name in ("data", "validation")]
        size = sum(Path(path).stat().st_size for path in read if path)
        size += sum(file.stat().st_size for file in Path(line["model"]).glob("*.safetensors"))
        free = shutil.disk_usage(self.temporary.parent).free - self.least_free
        return {"largest_file": max(GIB, min(LARGEST_FILE + PER_INPUT_BYTE * size, free))}

    def lacking(self) -> dict[str, str]:
        """What of it the kernel does not give, and how it says so."""
        done = subprocess.run(
            self.command([], None, probe=True), stdout=subprocess.PIPE, timeout=30, check=False
        )
        try:
            found: dict[str, str] = json.loads(done.stdout)
        except ValueError:
            return {"all": f"the launcher ended with {done.returncode}"}
        return found


class NoCell(Exception):
    """A cell is required and cannot be had."""


def of(settings: Settings, store: Store) -> Cell | None:
    """The cell that settings ask for; None: none. Raises NoCell."""
    if settings.trainer_cell == "off":
        log.warning("trainers_not_confined", reason="FINETUNED_TRAINER_CELL is off")
        return None
    models = settings.base_models
    outside = [models, *(path.resolve() for path in models.iterdir())] if models and models.is_dir() else []
    kept = (settings.home / "builtin", settings.home / "hub", settings.copies_folder)
    read = [store.root, *kept, *outside]
    write = [store.root / "jobs", store.root / "cache"]
    needed = [*map(str, read), *mechanism.packages()]
    found = Cell(
        read=tuple(needed),
        write=tuple(map(str, write)),
        hide=tuple(_hidden(settings, needed)),
        temporary=settings.home / "tmp",
        least_free=settings.min_free_bytes,
        required=settings.trainer_cell == "required",
    )
    _sweep(found.temporary)
    if lacking := found.lacking():
        log.warning("trainers_not_confined", lacking=lacking)
        if found.required:
            raise NoCell(f"FINETUNED_TRAINER_CELL is `required`, and this machine lacks: {lacking}")
    return found


def _hidden(settings: Settings, needed: list[str]) -> Iterator[str]:
    """Folders of sockets that a trainer has no business with, unless they hold what it needs."""
    folders = [*HIDDEN, *(str(settings.home / name) for name in ("postgres", "valkey", "logs"))]
    folders += [str(path.parent) for path in sockets(settings)]
    for folder in dict.fromkeys(map(os.path.realpath, folders)):
        if not any(os.path.realpath(path).startswith(f"{folder}/") for path in [*needed, str(settings.home)]):
            yield folder


def sockets(settings: Settings) -> Iterator[Path]:
    """The Unix sockets that the settings' URLs lead to."""
    for secret in (settings.database_url, settings.redis_url):
        parts = urlsplit(secret.get_secret_value() if secret else "")
        if parts.scheme.startswith("postgres"):
            for folder in parse_qs(parts.query).get("host", []):
                yield Path(folder) / "socket"
        elif parts.scheme in ("unix", "redis+socket"):
            yield Path(unquote(parts.path))
    for url in settings.generator_urls:
        if url.startswith("unix:"):
            yield Path(url.removeprefix("unix:"))


def _sweep(folder: Path) -> None:
    """Remove what trainers of workers that were killed left behind, and what reported of their jobs."""
    for left in [*folder.glob("trainer-*"), *folder.glob("integrations-*")]:
        try:
            newest = max(path.stat().st_mtime for path in [left, *left.rglob("*")])
            if time.time() - newest > LEFT_ALONE:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:
            continue
