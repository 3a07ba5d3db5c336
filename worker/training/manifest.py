"""Folders that are whole or absent: sealed with a manifest of hashes, committed by a rename. No torch."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

NAME = "manifest.json"
CHECKPOINT = re.compile(r"step-(\d+)")
BLOCK = 1 << 20


class Damaged(Exception):
    """A folder that is not what was sealed; says which file and why."""


def seal(folder: Path, facts: dict[str, Any] | None = None) -> tuple[str, int]:
    """Hashes and fsyncs every file, writes the manifest last; returns its SHA-256 and the bytes of all."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = {"sha256": _hash(path), "bytes": path.stat().st_size}
        sync(path)
    text = json.dumps({"files": files, **(facts or {})}, indent=1).encode()
    (folder / NAME).write_bytes(text)
    sync(folder / NAME)
    for inner in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync(inner)
    return hashlib.sha256(text).hexdigest(), len(text) + sum(file["bytes"] for file in files.values())


def commit(temporary: Path, final: Path) -> None:
    """Renames a sealed folder into place, instead of one that stands there, and makes the name durable."""
    if final.exists():
        discard(final)
    temporary.rename(final)
    sync(final.parent)


def sync(path: Path) -> None:
    """fsync of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(folder: Path) -> dict[str, Any]:
    """The manifest. Raises Damaged."""
    try:
        found = json.loads((folder / NAME).read_bytes())
        files = {str(name): (str(f["sha256"]), int(f["bytes"])) for name, f in found["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{NAME}: {type(error).__name__}") from None
    if any(name.startswith("/") or ".." in Path(name).parts for name in files):
        raise Damaged(f"{NAME}: names a file outside the folder")
    return {**found, "files": files}


def verify(folder: Path, contents: bool = True) -> str:
    """The manifest's SHA-256 when the folder holds exactly what it lists, else raises Damaged.

    Without `contents` only names and sizes are compared, which is enough to tell a folder cut short.
    """
    files = read(folder)["files"]
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() or p.is_symlink()}
    if strange := present - set(files) - {NAME}:
        raise Damaged(f"{min(strange)}: not in the manifest")
    for name, (digest, size) in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file() or path.stat().st_size != size:
            raise Damaged(f"{name}: missing or of another size")
        if contents and _hash(path) != digest:
            raise Damaged(f"{name}: its SHA-256 is not the manifest's")
    return _hash(folder / NAME)


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The committed checkpoints below a folder, oldest first, as (step, path)."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), path) for path in folder.iterdir() if (m := CHECKPOINT.fullmatch(path.name))]
    return sorted(found)


def prune(folder: Path, keep: int, best: int | None = None) -> list[int]:
    """Removes all but the newest `keep` good checkpoints and the best one; returns the steps removed.

    A damaged checkpoint does not count as kept, so the last good one always stays.
    """
    removed, good = [], 0
    for step, path in reversed(checkpoints(folder)):
        whole = _is_whole(path)
        if step == best or (whole and good < keep) or not good:
            good += whole
            continue
        discard(path)
        removed.append(step)
    return removed


def discard(folder: Path) -> None:
    """Removes a folder; killed halfway, what is left no longer bears its name."""
    grave = folder.with_name(f".removing-{folder.name}")
    shutil.rmtree(grave, ignore_errors=True)
    folder.rename(grave)
    shutil.rmtree(grave)


def sweep(folder: Path) -> None:
    """Removes what a killed process left behind: unfinished and half-removed folders."""
    for path in folder.glob(".*-*") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder, contents=False)
    except Damaged:
        return False
    return True


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
