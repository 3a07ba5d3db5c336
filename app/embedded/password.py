"""The embedded servers' passwords: generated at their first use, kept in files for the owner's eyes only."""

import contextlib
import os
import secrets
from pathlib import Path


def password(path: Path) -> str:
    """What the file says; it is made where there is none, whole or not at all. Needs no quoting in a URL."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    made = secrets.token_urlsafe(32)
    written = path.with_suffix(".new")
    descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        file.write(made)
    written.rename(path)
    return made
