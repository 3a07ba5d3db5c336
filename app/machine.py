"""What this machine has, without torch."""

import os
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_bytes() -> int:
    """Memory that a process here may use: all there is, or what its container is limited to."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(whole, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no cgroups, or "max"
        return whole


def has_gpu() -> bool:
    """Whether a driver for NVIDIA GPUs is loaded."""
    return Path("/proc/driver/nvidia/gpus").is_dir()
