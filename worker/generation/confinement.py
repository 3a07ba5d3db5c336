"""The generator's confinement: it reads models that others made, so it reaches those and little else.

Landlock alone, applied by the process to itself: it listens to a socket beside those of the servers, and
each request is the API's own, so there is no cell of namespaces as around a trainer (worker/cells.py). Where
the kernel knows no Landlock, `FINETUNED_TRAINER_CELL` says whether that is told or refused.
"""

import contextlib
import os
import resource
import sys

import structlog

from app.settings import Settings
from worker.training import cell

log = structlog.get_logger()
# Where libraries keep what they compile.
CACHES = (
    "TMPDIR",
    "HF_HOME",
    "XDG_CACHE_HOME",
    "TRITON_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "TORCHINDUCTOR_CACHE_DIR",
)


def enter(settings: Settings) -> None:
    """From here on this thread, and what it starts, reads models and writes caches and copies of models.

    To be called before any library starts threads, and after the socket is listened to: where no bucket is
    read, TCP is neither connected to nor listened to any more. Ends the process where that is required and
    cannot be had.
    """
    if settings.trainer_cell == "off":
        log.warning("generator_not_confined", reason="FINETUNED_TRAINER_CELL is off")
        return
    home, bases = settings.home, settings.base_models
    own = home / "tmp" / "generator"
    read = [settings.storage_folder, home / "hub"]
    write = [home / "builtin", settings.copies_folder, own]
    for folder in (*read, *write):
        with contextlib.suppress(OSError):  # mounted for reading: then it is there
            folder.mkdir(parents=True, exist_ok=True)
    if bases is not None and bases.is_dir():
        read += [bases, *(path.resolve() for path in bases.iterdir())]
    os.environ.update(dict.fromkeys(CACHES, str(own)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        cell.drop_privileges()
        packages = cell.packages()
        cell.restrict([*map(str, read), *packages], [*map(str, write)], network=settings.store is not None)
    except (OSError, AttributeError) as error:  # another system's C library has no such function
        if settings.trainer_cell == "required":
            sys.exit(f"finetuned: FINETUNED_TRAINER_CELL is `required`, and this machine lacks it: {error}")
        log.warning("generator_not_confined", lacking=str(error))
