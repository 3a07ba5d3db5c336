"""As whom Postgres runs: it refuses root, and root may not want a new user for it."""

import os
import pwd
import signal
import subprocess

from app.embedded import tether
from app.embedded.process import EmbeddedError

REFUSED = (
    "PostgreSQL refuses to run as root, and this machine allows root neither a user namespace nor a change "
    "of user: run finetuned as an ordinary user, or set DATABASE_URL to a PostgreSQL that is already there."
)


def unprivileged() -> str:
    """The tether identity for Postgres. Raises EmbeddedError where root cannot shed its rights."""
    if os.geteuid() != 0:
        return "same"
    account = _existing_account()
    for identity in (f"namespace:{account.pw_uid}", f"account:{account.pw_uid}:{account.pw_gid}"):
        if _works(identity):
            return identity
    raise EmbeddedError(REFUSED)


def owner(identity: str) -> int:
    """The user id that the kernel writes on files of a program with this identity."""
    return int(identity.split(":")[1]) if identity.startswith("account:") else os.geteuid()


def _existing_account() -> pwd.struct_passwd:
    """initdb looks its user up by id, so the id we go by must have an entry."""
    accounts = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
    if not accounts:
        raise EmbeddedError(REFUSED)
    return next((entry for entry in accounts if entry.pw_name == "nobody"), accounts[0])


def _works(identity: str) -> bool:
    true = tether.command(["/bin/true"], signal.SIGKILL, identity)
    return subprocess.run(true, capture_output=True, check=False).returncode == 0
