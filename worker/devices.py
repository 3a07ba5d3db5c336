"""Which GPUs this worker may use and how full they are, as the driver's own tool tells: no torch in here."""

import subprocess
from typing import Any

from worker.launch import trainer_environment

ASK = (
    "nvidia-smi",
    "--query-gpu=index,uuid,name,memory.total,memory.used",
    "--format=csv,noheader,nounits",
)
MIB = 1024**2


def look() -> list[dict[str, Any]]:
    """Name, memory and its use of each GPU, in bytes; none where no driver is or answers."""
    try:
        said = subprocess.run(ASK, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return read(said, trainer_environment().get("CUDA_VISIBLE_DEVICES"))


def read(said: str, visible: str | None) -> list[dict[str, Any]]:
    """`visible`: CUDA's own variable, with indices or the beginnings of UUIDs; None: all of them."""
    found = []
    for line in said.splitlines():
        index, uuid, name, total, used = (part.strip() for part in line.split(","))
        if visible is None or any(
            one == index or (one.startswith("GPU-") and uuid.startswith(one))
            for one in map(str.strip, visible.split(","))
        ):
            found.append({"name": name, "memory_bytes": _bytes(total), "used_bytes": _bytes(used)})
    return found


def _bytes(mebibytes: str) -> int | None:
    """Unified memory, as on a small board, is told as [N/A]."""
    return int(mebibytes) * MIB if mebibytes.isdecimal() else None
