"""An API key becomes a Caller.

A key is `ft_<8 characters id>_<43 characters secret>_<6 characters checksum>`: the id finds the row, the
secret's SHA-256 is compared in constant time, the checksum lets secret scanners know a key without asking us.
"""

import hashlib
import hmac
import os
import re
import secrets
import string
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.database import Database, WorkerDatabase
from app.errors import NotAuthenticated
from app.settings import Settings
from app.tables import ApiKey, now

ALPHABET = string.digits + string.ascii_letters
KEY_FORM = re.compile(r"ft_([0-9A-Za-z]{8})_([0-9A-Za-z_-]{43})_([0-9A-Za-z]{6})")
# One write a minute and key is enough to see which keys are in use.
LAST_USED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class Caller:
    """Who asks: every row they see or make is `owner`'s."""

    key_id: str
    owner: str


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


def make_key() -> str:
    """A new key with 256 random bits."""
    body = f"ft_{''.join(secrets.choice(ALPHABET) for _ in range(8))}_{secrets.token_urlsafe(32)}"
    return f"{body}_{_checksum(body)}"


def parse_key(key: str) -> tuple[str, str] | None:
    """(id, secret) of a well-formed key whose checksum is right."""
    form = KEY_FORM.fullmatch(key)
    if form is None or form[3] != _checksum(key[: -len(form[3]) - 1]):
        return None
    return form[1], form[2]


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def store_key(session: Session, key: str, owner: str, name: str) -> None:
    """Keep a key's id and the hash of its secret; a key already kept stays as it is.

    Raises ValueError where `key` has not the form of a key.
    """
    parts = parse_key(key)
    if parts is None:
        raise ValueError("not an API key of this service")
    row = insert(ApiKey).values(
        id=parts[0], owner=owner, name=name, secret_sha256=_sha256(parts[1]), created_at=now
    )
    session.execute(row.on_conflict_do_nothing())


def ensure_first_key(settings: Settings) -> Path:
    """The first key stands in `home/key` (mode 0600) and in the database, whichever of the two is new."""
    path = settings.key_file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".key-{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(make_key() + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    database = WorkerDatabase(settings)
    try:
        with database.transaction() as session:
            store_key(session, path.read_text().strip(), owner=settings.organization, name="first key")
    finally:
        database.close()
    return path


def _bearer(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise NotAuthenticated(
            "No API key: send it as `Authorization: Bearer <key>`. `finetuned up` wrote the first one"
            " to the file `key` in its home folder.",
            code="missing_api_key",
        )
    return key.strip()


async def caller(request: Request) -> Caller:
    """Dependency of every route but health's. Raises NotAuthenticated, not saying what was wrong."""
    key_id, secret = parse_key(_bearer(request)) or ("", "")
    database: Database = request.app.state.database
    # A transaction of its own: the route's holds no connection until the route itself asks for one.
    async with database.transaction() as session:
        row = await session.get(ApiKey, key_id)
        # Hash and compare even when there is no such key, so that time does not tell.
        same = hmac.compare_digest(row.secret_sha256 if row else "", _sha256(secret))
        at = datetime.now(UTC)
        if row is None or not same or row.revoked_at or (row.expires_at and row.expires_at <= at):
            raise NotAuthenticated("This API key is unknown, expired or revoked.")
        if row.last_used_at is None or at - row.last_used_at > LAST_USED_EVERY:
            row.last_used_at = at
        return Caller(key_id=row.id, owner=row.owner)


KnownCaller = Annotated[Caller, Depends(caller)]
