"""Start a program that dies with its parent: `python -I -S tether.py PARENT SIGNAL IDENTITY PROGRAM …`.

Runs as a script of its own (standard library only), sets itself up and becomes PROGRAM by exec. A
`preexec_fn` would do the same between fork and exec, where Python may deadlock once threads exist.

IDENTITY is who PROGRAM believes to be:

    same               whoever started it
    namespace:UID      still us for every file, but seen as UID and without any capability
    account:UID:GID    that user, allowed to pass folders of mode 0700 and nothing else of root's
"""

import ctypes
import os
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2
CAP_DAC_OVERRIDE = 1
CLONE_NEWUSER = 0x10000000
LINUX_CAPABILITY_VERSION_3 = 0x20080522


def command(program: list[str], signal: int, identity: str = "same") -> list[str]:
    """The argument list that starts `program` tied to the calling process; `signal` is how it is ended.

    The kernel watches the parent *thread*: start it from a thread that lives as long as the program should.
    """
    options = [str(os.getpid()), str(int(signal)), identity]
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *options, *program]


def main(arguments: list[str]) -> None:
    """Become the program. Raises OSError where the kernel refuses the identity."""
    parent, signal, identity, *program = arguments
    kind, *numbers = identity.split(":")
    if kind == "namespace":
        enter_namespace(int(numbers[0]))
    elif kind == "account":
        become_account(int(numbers[0]), int(numbers[1]))
    if sys.platform == "linux":
        # Last, because a change of user clears it; and then a look, because the parent may be gone already.
        _call("prctl", PR_SET_PDEATHSIG, int(signal), 0, 0, 0)
        if os.getppid() != int(parent):
            sys.exit(0)
    os.execv(program[0], program)  # noqa: S606 - no shell is the point


def enter_namespace(uid: int) -> None:
    """A user namespace where we are `uid`: files stay readable as ours, and the kernel grants no more."""
    ours, group = os.geteuid(), os.getegid()
    _call("unshare", CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {ours} 1")
    Path("/proc/self/gid_map").write_text(f"{uid} {group} 1")
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def become_account(uid: int, gid: int) -> None:
    """Another user who keeps CAP_DAC_OVERRIDE, to reach binaries and data below a home of mode 0700."""
    _call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    only = 1 << CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(LINUX_CAPABILITY_VERSION_3, 0)
    # Two blocks of (effective, permitted, inheritable), low words first.
    _call("capset", header, (ctypes.c_uint32 * 6)(only, only, only, 0, 0, 0))
    _call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # Variadic prctl reads whole registers: a plain int would leave the upper half undefined.
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    if getattr(libc, name)(*words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"{sys.argv[4]}: {error}")
