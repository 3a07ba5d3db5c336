"""`finetuned download`: a model's folder, whole or not at all.

The files gather in `<out>.partial`, where an interrupted download goes on. Only when every one has the
SHA-256 that the service names is the folder renamed to what was asked for.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson
from app.terminal.outcome import Failure, Refused, usage

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

TRIES = 8  # broken connections in a row, without a byte between, after which it is given up
LONGEST_WAIT = 10.0  # seconds between two of them
MARGIN = 16 * 1024**2  # bytes that are left free
MANIFEST = "manifest.json"
MARK = ".finetuned-download"  # stands in a folder that a download may clear
Advance = Callable[[int], None]


@connected
def download(
    api: "Api",
    model: Annotated[
        str,
        typer.Argument(
            help="A model's or checkpoint's name, a job, or `last`", autocompletion=ids.complete_model
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to make; by default named after it")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download a model's folder, which transformers loads; started again it goes on where it was.

    With --json the document is the list of its files.
    """
    from app.terminal.client import path

    name = ids.model(api, model)
    target = (out or Path(name.replace(":", "-").replace("/", "-").lstrip(".") or "model")).absolute()
    listed = api.get(path("models", name, "files"))
    files = [_checked(row) for row in listed["data"]]
    if target.is_symlink() or (target.exists() and not _is_empty(target)):
        if not target.is_dir() or not _is_whole(target, files):
            raise usage(f"--out: {target} is there and holds something else; name another folder.")
        _tell(listed, target, as_json, "is there already, and whole")
        return
    partial = target.with_name(f"{target.name}.partial")
    try:
        with _alone(partial, files), _bar(files, quiet=as_json) as advance:
            _refuse_full_disk(partial, files)
            for row in files:
                where = path("models", name, "files", *PurePosixPath(row["path"]).parts)
                _fetch(api, where, partial, row, advance)
            _finish(partial, target, files)
    except OSError as error:
        raise Failure(f"{error.filename or partial}: {error.strerror}. What has arrived is kept.") from None
    _tell(listed, target, as_json, "is whole")


def _tell(listed: "JsonObject", target: Path, as_json: bool, what: str) -> None:
    if as_json:
        screen.show_json(listed)
        return
    total = sum(row["bytes"] for row in listed["data"])
    screen.say(f"{target} {what}: {len(listed['data'])} files, {screen.size(total)}.")


def _checked(row: "JsonObject") -> "JsonObject":
    """Raises Failure for a name that would lie outside the folder: the service may not be what we think."""
    path = PurePosixPath(row["path"])
    if (
        path.is_absolute()
        or ".." in path.parts
        or not path.parts
        or "\0" in row["path"]
        or "\\" in row["path"]
    ):
        raise Failure(
            f"The service names a file that lies outside of the model: {row['path']!r}. Nothing was written."
        )
    return row


def _is_empty(target: Path) -> bool:
    return target.is_dir() and next(target.iterdir(), None) is None


def _is_whole(folder: Path, files: "list[JsonObject]") -> bool:
    return all(_is_right(folder / row["path"], row) for row in files)


def _is_right(path: Path, row: "JsonObject") -> bool:
    try:
        return path.stat().st_size == row["bytes"] and _sha256(path) == str(row["sha256"])
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone(partial: Path, files: "list[JsonObject]") -> Iterator[None]:
    """The folder is made, and no other download writes there. Raises Failure."""
    import fcntl

    try:
        partial.mkdir(parents=True, exist_ok=True)
        handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise Failure(f"{partial} cannot be made ({error.strerror}): name another folder by --out.") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise Failure(
            f"Another download is writing to {partial}: wait for it, or name another --out."
        ) from None
    try:
        _claim(partial, files)
        yield
    finally:
        os.close(handle)


def _claim(partial: Path, files: "list[JsonObject]") -> None:
    """What is in the folder may be removed: it is a download's. Raises Failure for a folder of somebody's."""
    known = {PurePosixPath(row["path"]).parts[0] for row in files} | {MANIFEST, MARK}
    names = {path.name for path in partial.iterdir()}
    if MARK not in names and not names <= known:
        raise Failure(f"{partial} is there and no download's: move it away, or name another --out.")
    (partial / MARK).touch()


def _refuse_full_disk(partial: Path, files: "list[JsonObject]") -> None:
    there = sum(min(_bytes(partial / row["path"]), row["bytes"]) for row in files)
    needed = sum(row["bytes"] for row in files) - there + MARGIN
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise Failure(f"{partial.parent} has {screen.size(free)} free, and {screen.size(needed)} are needed.")


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _fetch(api: "Api", where: str, partial: Path, row: "JsonObject", advance: Advance) -> None:
    """One file, from where it stopped. Raises Failure; what is damaged is removed."""
    file = partial / row["path"]
    file.parent.mkdir(parents=True, exist_ok=True)
    begun = _bytes(file)
    if begun > row["bytes"]:
        file.unlink()
        begun = 0
    advance(begun)
    _receive(api, where, file, row, advance)
    if _is_right(file, row):
        return
    file.unlink()
    advance(-row["bytes"])
    if (
        begun
    ):  # what lay there was of another file, or was damaged on this disk: once more, from its beginning
        _receive(api, where, file, row, advance)
        if _is_right(file, row):
            return
        file.unlink()
    raise Failure(
        f"{row['path']} arrived damaged: its SHA-256 is not the one that the service names."
        " It was removed; download again, and if that does not help look at the service's disk."
    )


def _receive(api: "Api", where: str, file: Path, row: "JsonObject", advance: Advance) -> None:
    """Bytes until there are as many as there should be. Raises Failure, OSError."""
    import httpx2

    failures, wait = 0, 0.5
    while (have := _bytes(file)) < row["bytes"] or not file.exists():
        # No If-Range: a bucket behind a redirect has tags of its own. The SHA-256 in the end tells.
        headers = {"accept-encoding": "identity", **({"range": f"bytes={have}-"} if have else {})}
        try:
            with api.stream("GET", where, headers=headers, follow_redirects=True) as response:
                if response.status_code != 206 and have:
                    advance(-have)
                with _open(file, append=response.status_code == 206) as target:
                    for block in response.iter_bytes():  # as they come: what is cut off later is kept
                        if target.tell() + len(block) > row["bytes"]:
                            raise Failure(f"{row['path']} is longer than the service said: download again.")
                        target.write(block)
                        target.flush()  # a kill loses nothing that has arrived
                        advance(len(block))
        except httpx2.TransportError as error:
            problem: Failure = api.lost(error)
        except Refused as refusal:
            if refusal.status < 500 and refusal.status != 429:
                raise
            problem = refusal
        else:
            problem = Failure(f"{row['path']} ended early: download again to go on.")
        if _bytes(file) > have:
            failures, wait = 0, 0.5
        elif _bytes(file) < row["bytes"]:
            failures += 1
            if failures >= TRIES:
                problem.sentence += " What has arrived is kept; the same command goes on there."
                raise problem
            time.sleep(wait)
            wait = min(LONGEST_WAIT, 2 * wait)


def _open(file: Path, *, append: bool) -> BinaryIO:
    """Never through a link that somebody laid there. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_APPEND if append else os.O_TRUNC)
    return os.fdopen(os.open(file, flags, 0o644), "ab" if append else "wb")


def _finish(partial: Path, target: Path, files: "list[JsonObject]") -> None:
    """What is not of the model goes, everything is forced to disk, and the folder gets its name."""
    known = {partial / row["path"] for row in files}
    for path in sorted(partial.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(file.is_relative_to(path) for file in known):
                path.rmdir()
        elif path not in known:
            path.unlink()
    said = {row["path"]: {"sha256": row["sha256"], "bytes": row["bytes"]} for row in files}
    if MANIFEST not in said:  # what the service's own folder has, so that anybody can check it again
        (partial / MANIFEST).write_text(json.dumps({"files": said}, indent=1))
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    try:
        partial.rename(target)  # onto an empty folder, too; never onto anything else
    except OSError as error:
        raise Failure(f"{partial} is whole, but cannot be renamed to {target} ({error.strerror}).") from None
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _bar(files: "list[JsonObject]", *, quiet: bool) -> Iterator[Advance]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = screen.console(stderr=True)
    with Progress(
        TextColumn("Downloading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=sum(row["bytes"] for row in files))
        yield lambda count: bar.advance(task, count)
