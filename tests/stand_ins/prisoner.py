"""What a trainer taken over by its model would try: reach for everything, and tell what could be reached."""

import errno
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST_FORKS = 20_000


def pry(targets: dict[str, list[Any]], out: Path) -> dict[str, str]:
    """Each target by its kind and name: `reached`, or the name of the error."""
    found = {}
    for kind, names in targets.items():
        for name in names:
            found[f"{kind} {name}"] = _outcome(lambda kind=kind, name=name: WAYS[kind](name, out))  # type: ignore[misc]
    return found


def _outcome(reach: Callable[[], None]) -> str:
    try:
        reach()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "reached"


def _tcp(address: str, _: Path) -> None:
    host, port = address.rsplit(":", 1)
    socket.create_connection((host, int(port)), timeout=2).close()


def _udp(address: str, _: Path) -> None:
    host, port = address.rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        any_socket.sendto(b"x", (host, int(port)))


def _unix(path: str, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as any_socket:
        any_socket.settimeout(2)
        any_socket.connect(path)


def _read(path: str, _: Path) -> None:
    if os.path.isdir(path):
        os.listdir(path)
    else:
        with open(path, "rb") as file:
            file.read(1)


def _write(path: str, _: Path) -> None:
    with open(path, "ab"):
        pass


def _signal(pid: int, _: Path) -> None:
    os.kill(pid, 0)


def _grow(size: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    file = out / "large"
    try:
        with file.open("wb") as opened:
            opened.truncate(size)
    finally:
        file.unlink(missing_ok=True)


def _fork(most: int, _: Path) -> None:
    """So many children at once; raises as soon as the kernel has enough."""
    children = []
    try:
        for _number in range(most):
            child = os.fork()
            if not child:
                time.sleep(60)
                os._exit(0)
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)


def _mount(folder: str, _: Path) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, None) < 0:
        raise OSError(ctypes.get_errno(), "mount")


WAYS: dict[str, Callable[[Any, Path], None]] = {
    "tcp": _tcp, "udp": _udp, "unix": _unix, "read": _read, "write": _write, "signal": _signal,
    "grow": _grow, "fork": _fork, "mount": _mount,
}  # fmt: skip
