"""What this worker can tell of itself, so that jobs can ask for it: its labels and its memory.

cpu, gpu          which of the two it trains on
h100-80gb-hbm3    the GPU's name, without the maker's, where all it has are alike
host:<name>       the machine
"""

import re
import socket
from collections.abc import Sequence
from typing import Any

from app import machine
from app.lifecycle.offers import Offer
from app.settings import Settings
from worker import devices


def offer(settings: Settings) -> Offer:
    """Without the worker's own name. Looks for GPUs, which takes as long as their driver's program."""
    gpus = devices.look()
    told = [gpu["memory_bytes"] for gpu in gpus if gpu["memory_bytes"] is not None]
    given = settings.worker_memory_bytes
    memory = given or min(told, default=machine.memory_bytes())
    labels = {*settings.worker_labels, *_known(gpus), f"host:{_plain(socket.gethostname())}"}
    return Offer("", frozenset(labels), memory, given, settings.worker_slots)


def _known(gpus: Sequence[dict[str, Any]]) -> set[str]:
    if not gpus:
        return {"gpu"} if machine.has_gpu() else {"cpu"}
    names = {_plain(gpu["name"].lower().removeprefix("nvidia ")) for gpu in gpus}
    return {"gpu", *(names if len(names) == 1 else ())}


def _plain(name: str) -> str:
    """As a label may be written."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:58]
