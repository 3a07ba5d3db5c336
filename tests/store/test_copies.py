"""Copies on this machine's disk: filled once, bounded, and whole whoever dies."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from app.copies import LOCK, RECENT, UNUSED, Copies


def filler(data: bytes, filled: list[Path] | None = None, pause: float = 0.0) -> Callable[[Path], None]:
    def fill(target: Path) -> None:
        if filled is not None:
            filled.append(target)
        time.sleep(pause)
        target.write_bytes(data)

    return fill


def put(copies: Copies, key: str, size: int, idle: float) -> None:
    with copies.hold(key, filler(b"x" * size)) as path:
        pass
    then = time.time() - idle
    os.utime(path.parent / LOCK, (then, then))


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != LOCK)


def test_a_copy_is_filled_once_for_all_who_want_it(tmp_path: Path) -> None:
    copies, filled, found = Copies(tmp_path, 100), list[Path](), list[bytes]()

    def read() -> None:
        with copies.hold("files/a", filler(b"one", filled, 0.2)) as path:
            found.append(path.read_bytes())

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"one"] * 8
    assert len(filled) == 1


def test_a_failed_fill_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    copies = Copies(tmp_path, 100)

    def fail(target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"), copies.hold("files/a", fail):
        pass
    assert list(tmp_path.iterdir()) == []
    with copies.hold("files/a", filler(b"whole")) as path:
        assert path.read_bytes() == b"whole"


def test_killed_in_the_middle_of_a_fill_it_is_filled_by_the_next(tmp_path: Path) -> None:
    program = """
import os, pathlib, signal, sys
from app.copies import Copies
def fill(target):
    target.mkdir()
    (target / "half").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
with Copies(pathlib.Path(sys.argv[1]), 100).hold("models/m", fill): pass
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    assert kept(tmp_path) == ["half"]
    with Copies(tmp_path, 100).hold("models/m", filler(b"whole")) as path:
        assert path.read_bytes() == b"whole"
    assert kept(tmp_path) == ["m"]


def test_the_least_recently_used_goes_when_there_is_no_room(tmp_path: Path) -> None:
    copies = Copies(tmp_path, 100)
    put(copies, "files/old", 60, RECENT + 200)
    put(copies, "files/older", 30, RECENT + 300)
    put(copies, "files/new", 40, 0)
    assert kept(tmp_path) == ["new", "old"]
    put(copies, "files/newer", 80, 0)
    assert kept(tmp_path) == ["new", "newer"], "what was asked for a moment ago stays"


def test_what_nobody_uses_goes_after_a_day(tmp_path: Path) -> None:
    copies = Copies(tmp_path, 100)
    put(copies, "files/a", 1, UNUSED + 1)
    put(copies, "files/b", 1, UNUSED - 100)
    copies.sweep()
    assert kept(tmp_path) == ["b"]


def test_what_is_held_stays(tmp_path: Path) -> None:
    """Though it was taken long ago, there is no room, and it is to be forgotten; by another process, too."""
    copies = Copies(tmp_path, 10)
    program = (
        "import pathlib, sys; from app.copies import Copies; copies = Copies(pathlib.Path(sys.argv[1]), 1);"
        "copies.sweep(); copies.forget('files')"
    )
    with copies.hold("files/a", filler(b"x" * 50)) as path:
        os.utime(path.parent / LOCK, (0, 0))
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
        assert path.read_bytes() == b"x" * 50
    os.utime(path.parent / LOCK, (0, 0))
    copies.sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_forgotten_with_all_below_it_and_no_other(tmp_path: Path) -> None:
    copies = Copies(tmp_path, 1000)
    for key in ("jobs/a", "jobs/a/e1/checkpoints/step-1", "jobs/ab", "jobs"):
        put(copies, key, 1, 0)
    copies.forget("jobs/a")
    assert kept(tmp_path) == ["ab", "jobs"]


@pytest.mark.parametrize("next_one", [lambda lock: lock.touch(), lambda lock: lock.parent.rmdir()])
def test_the_next_one_may_come_just_before_the_folder_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, next_one: Callable[[Path], None]
) -> None:
    copies = Copies(tmp_path, 1)
    with copies.hold("files/a", filler(b"x")):
        pass

    def come(path: Path) -> None:
        monkeypatch.undo()
        next_one(path / LOCK)
        path.rmdir()

    monkeypatch.setattr(Path, "rmdir", come)
    copies.forget("files/a")
    with copies.hold("files/a", filler(b"y")) as path:
        assert path.read_bytes() == b"y"


def test_readers_and_removers_at_once_never_see_half(tmp_path: Path) -> None:
    copies, data, ended, wrong = Copies(tmp_path, 1), b"x" * 100_000, threading.Event(), list[bytes]()

    def remove() -> None:
        while not ended.is_set():
            copies.forget("files/a")

    def read() -> None:
        for _ in range(100):
            with copies.hold("files/a", filler(data)) as path:
                found = path.read_bytes()
                if found != data:
                    wrong.append(found)

    with ThreadPoolExecutor(5) as threads:
        removers = [threads.submit(remove) for _ in range(2)]
        readers = [threads.submit(read) for _ in range(3)]
        wait(readers)
        ended.set()
        for each in [*readers, *removers]:
            each.result()
    assert wrong == []
