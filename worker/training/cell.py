"""A trainer's cell: no network, no other process, no file but its job's, no more than its limits.

`python -I -S cell.py '{…}' PROGRAM …` (standard library only) builds it and runs PROGRAM inside; what a job
may touch is known later than what a trainer may, so the trainer itself calls `confine` when its job comes.

    the worker
    └─ cell.py       passes signals on, ends as the trainer ends
       └─ cell.py    the first process of a PID namespace: with it dies whatever is left in there
          └─ PROGRAM

Three of the kernel's mechanisms, each of which may be missing (containers forbid the first, old kernels lack
the second): namespaces of users, networks, processes and mounts; Landlock, which restricts files and, from
Linux 6.7 on, TCP; limits of resources. CUDA sees the devices, its libraries and a writable /dev as ever.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 1, 24, 28, 38
NO_ROOT = 0b1111  # uid 0 is a number like any other, for good
LAST_CAPABILITY = 63
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REC, MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
SET_FLAGS, UP, RUNNING = 0x8914, 0x1, 0x40  # of a network interface
CAPABILITY_VERSION_3 = 0x20080522
OPEN_FILES = 65_536

# Landlock's system calls have the same numbers on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
PATH_BENEATH = 1
ALL_THREADS = 8  # a flag that versions from 8 on know
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READING = EXECUTE | READ_FILE | READ_DIR
ON_FILES = (
    EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
)  # the rights that a file, not a folder, has
TCP = 0b11  # bind, connect
SCOPES = 0b11  # abstract Unix sockets, signals

Lacking = dict[str, str]


def system_folders() -> list[str]:
    """What any Python program with CUDA reads: the system, this interpreter, and where packages lie."""
    names = ("usr", "lib", "lib32", "lib64", "bin", "sbin", "etc", "opt", "nix", "proc", "sys", "run")
    found = [f"/{name}" for name in names]
    found += [sys.prefix, sys.base_prefix, *os.environ.get("LD_LIBRARY_PATH", "").split(":")]
    return [path for path in found if path]


def main(arguments: list[str]) -> None:
    """Become the program, or the one that waits for it."""
    said, *program = arguments
    order = json.loads(said)
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != order["parent"]:
        sys.exit(0)
    lacking: Lacking = {}
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _make_devices()
    try:
        _enter_namespaces(order["network"])
    except OSError as error:
        lacking["namespaces"] = str(error)
        _become(program, order, lacking)
    # Only now: outside, it would count everything of this user's.
    _limit(resource.RLIMIT_NPROC, order["processes"])
    for name, step in (("loopback", _raise_loopback), ("mounts", lambda: _hide(order["hide"]))):
        _try(name, step, lacking)
    if child := os.fork():
        _follow(child)
    _die_with_parent()
    _try("proc", _mount_proc, lacking)
    with contextlib.suppress(OSError):  # one number for all namespaces before Linux 6.14
        Path("/proc/sys/kernel/pid_max").write_text(str(order["processes"]))
    if child := os.fork():
        _follow(child)
    _die_with_parent()
    _become(program, order, lacking)


def _become(program: list[str], order: dict[str, Any], lacking: Lacking) -> None:
    _try("privileges", drop_privileges, lacking)
    # In a network of its own the loopback is wanted; without, one job's processes still need it to meet.
    network = order["network"] or order["several"] or "namespaces" not in lacking
    _try("landlock", lambda: restrict(order["read"], order["write"], network), lacking)
    if order.get("probe"):
        print(json.dumps(lacking))
        sys.stdout.flush()
        os._exit(0)
    if lacking and order["required"]:
        sys.exit(f"no cell for the trainer: {lacking}")
    os.execv(program[0], program)  # noqa: S606 - no shell is the point


def _try(name: str, step: Any, lacking: Lacking) -> None:
    try:
        step()
    except OSError as error:
        lacking[name] = str(error)


def _die_with_parent() -> None:
    parent = os.getppid()
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _make_devices() -> None:
    """CUDA makes this device by a program that may do so; in the cell nobody may."""
    if os.path.exists("/dev/nvidia0") and not os.path.exists("/dev/nvidia-uvm"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(["nvidia-modprobe", "-u", "-c=0"], timeout=10, check=False)


def _enter_namespaces(network: bool) -> None:
    user, group = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | (0 if network else CLONE_NEWNET))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _raise_loopback() -> None:
    """Several processes of one job talk over it. Up it is already where the network was kept."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH14x", b"lo", UP | RUNNING))


def _hide(folders: Iterable[str]) -> None:
    """An empty folder over each: a Unix socket is beyond both Landlock and a network namespace."""
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    options = MS_NOSUID | MS_NODEV | MS_NOEXEC
    for folder in folders:
        if os.path.isdir(folder):
            place = os.fsencode(os.path.realpath(folder))
            _call("mount", b"none", place, b"tmpfs", options, b"size=4k,mode=755")


def _mount_proc() -> None:
    _call("mount", b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None)


def drop_privileges() -> None:
    """No capability, and no way to gain one, in a namespace or out of it."""
    with contextlib.suppress(OSError):  # who has none to begin with may not say so
        _call("prctl", PR_SET_SECUREBITS, NO_ROOT)
        for capability in range(LAST_CAPABILITY + 1):
            _call("prctl", PR_CAPBSET_DROP, capability)
    _call("capset", (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _follow(child: int) -> None:
    """Pass signals on, and end as the child ends."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _send(child, number))
    for descriptor in range(3):  # else the end of the trainer's words would never come
        os.close(descriptor)
    while True:
        ended, status = os.wait()  # orphans are ours too
        if ended == child:
            break
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        # The first process of a namespace does not die of its own signals: its code tells the one outside.
        if os.getpid() == 1:
            os._exit(128 - code)
        _die_of(-code)
    if os.getpid() != 1 and code > 128:
        _die_of(code - 128)
    os._exit(code)


def _send(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _die_of(number: int) -> None:
    with contextlib.suppress(OSError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def confine(read: Iterable[Path], write: Iterable[Path], largest_file: int | None) -> None:
    """From here on this process reads its job's files and writes to its job's folders, and no other's.

    Where the kernel has no Landlock the launcher has said so, and nothing happens here.
    """
    folders = [str(path) for path in write]
    for folder in folders:
        os.makedirs(folder, exist_ok=True)
    with contextlib.suppress(OSError):
        restrict([*map(str, read), *packages()], [*folders, os.environ["TMPDIR"]], network=True)
    if largest_file is not None:
        _limit(resource.RLIMIT_FSIZE, largest_file)


def packages() -> list[str]:
    """Where this process imports from. Of a folder of sources (its name ends in a slash) only what lies in
    there may be known, for there may be a `.env` among them, and of its own only code may be read."""
    found = [sys.prefix]  # which the launcher, without `site`, does not know
    for path in map(os.path.realpath, dict.fromkeys([*sys.path, os.getcwd()])):
        if path.endswith("-packages") or path.startswith(os.path.realpath(sys.base_prefix)):
            found.append(path)
        elif os.path.isdir(path):
            found.append(f"{path}/")
            inner = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
            found += [entry.path for entry in inner if entry.is_dir() or entry.name.endswith(".py")]
    return found


def restrict(read: Iterable[str], write: Iterable[str], network: bool) -> None:
    """Landlock: what is not listed, and no system folder, is not there for this thread and what it starts.

    Raises OSError where the kernel knows no Landlock.
    """
    version = _landlock(CREATE_RULESET, None, 0, 1)
    rights = (1 << 13) - 1
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        rights |= right if version >= since else 0
    handled = [rights, TCP if version >= 4 and not network else 0, SCOPES if version >= 6 else 0]
    size = 8 * (1 if version < 4 else 2 if version < 6 else 3)
    ruleset = _landlock(CREATE_RULESET, (ctypes.c_uint64 * 3)(*handled), size, 0)
    try:
        for paths, allowed in (
            (system_folders(), READING),
            (read, READING),
            (("/dev", "/proc/self"), rights),
            (write, rights),
        ):
            for path in paths:
                _allow(ruleset, path, READ_DIR if path.endswith("/") else allowed & rights)
        _landlock(RESTRICT_SELF, ruleset, ALL_THREADS if version >= 8 else 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there need not be allowed
    try:
        if not os.path.isdir(path):
            rights &= ON_FILES
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, folder))
        _landlock(ADD_RULE, ruleset, PATH_BENEATH, rule, 0)
    finally:
        os.close(folder)


def _landlock(number: int, *arguments: Any) -> int:
    return _call("syscall", number, *arguments)


def _call(name: str, *arguments: Any) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    # Variadic functions read whole registers: a plain int would leave the upper half undefined.
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    found = int(getattr(libc, name)(*words))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return found


def _limit(which: int, most: int) -> None:
    """Lower a limit for good; one that is lower already stays."""
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(which, (most, most))


if __name__ == "__main__":
    main(sys.argv[1:])
