"""The dashboard's files: a fixed set, known at the start; no path of a request touches the disk."""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).parent
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PLOTLY = "/dashboard/plotly.min.js"
WORTH_PACKING = 1_000  # bytes; below, gzip's own header eats what it saves


def _plotly() -> Path:
    """Where the wheel keeps its script. Found without an import, which would load pandas' relatives too."""
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise RuntimeError("plotly is not installed: the dashboard draws its charts with the script in it")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


def _found() -> dict[str, Path]:
    own = {
        f"/dashboard/{path.relative_to(FOLDER).as_posix()}": path
        for path in sorted(FOLDER.rglob("*"))
        if path.suffix in KINDS
    }
    return {"/": own.pop("/dashboard/index.html"), **own, PLOTLY: _plotly()}


# Address and file. These need no key: app/access.py.
FILES = _found()


@dataclass(frozen=True)
class Content:
    """A file as it is sent, plain and packed (None where that would save nothing)."""

    kind: str
    etag: str
    plain: bytes
    packed: bytes | None


@cache
def content(address: str) -> Content:
    """Read and packed once a process: Plotly's 4.8 MB take a quarter of a second. Raises KeyError."""
    path = FILES[address]
    plain = path.read_bytes()
    packed = (
        gzip.compress(plain, 9 if len(plain) < 1 << 20 else 6, mtime=0)
        if len(plain) > WORTH_PACKING
        else None
    )
    return Content(KINDS[path.suffix], f'"{hashlib.sha256(plain).hexdigest()[:32]}"', plain, packed)
