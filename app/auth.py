"""An API key becomes a Caller: who asks, whose rows they see, what they may do."""

import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import psycopg
from fastapi import Depends, Request
from psycopg_pool import PoolTimeout
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from app import tickets
from app.apikey import make_key, parse_key, secret_sha256
from app.database import Database, WorkerDatabase
from app.errors import NotAuthenticated
from app.glance import patience
from app.keyring import ApiKey
from app.rate import spend_request
from app.settings import Settings
from app.tables import now

# What a key may be allowed to do. `write` includes `read`.
SCOPES = {
    "files:read": "List and download files, reports and uploads",
    "files:write": "The same; upload and delete",
    "jobs:read": "List jobs, events, metrics and checkpoints",
    "jobs:write": "The same; create, cancel, pause and resume",
    "jobs:high": "Beside jobs:write: create jobs of priority `high`, which make others give way",
    "models:read": "List and download models",
    "models:write": "The same; delete, and permit others to use",
    "generate": "Have models write: completions and chat",
    "webhooks:read": "List webhook endpoints and deliveries",
    "webhooks:write": "The same; create, change, test and delete",
    "metrics:read": "Read the figures of /metrics; an admin's to give",
    "admin:read": "List everybody's keys, read the audit log",
    "admin:write": "The same; make keys for anybody, with any scopes, and revoke them",
}
USER_SCOPES = ("files:write", "jobs:write", "models:write", "generate", "webhooks:write")
ALL_SCOPES = (*USER_SCOPES, "jobs:high", "metrics:read", "admin:write")
# One write a minute and key is enough to see which keys are in use.
LAST_USED_EVERY = timedelta(minutes=1)
# Of a key about which nothing is to be written: good, without a limit of requests, used within that minute.
RECOGNISED = """
    SELECT secret_sha256, owner, scopes, storage_bytes FROM api_keys
    WHERE id = %s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
      AND requests_per_minute IS NULL AND last_used_at > now() - %s
"""


@dataclass(frozen=True)
class Caller:
    """Who asks: every row they see or make is `owner`'s. `storage_bytes` is the limit of their key."""

    key_id: str
    owner: str
    scopes: frozenset[str]
    storage_bytes: int | None = None

    def may(self, scope: str) -> bool:
        return scope in self.scopes or scope.replace(":read", ":write") in self.scopes


def store_key(session: Session, key: str, owner: str, name: str, scopes: Iterable[str] = USER_SCOPES) -> None:
    """Keep a key's id and the hash of its secret; of a key already kept only the scopes change.

    Raises ValueError where `key` has not the form of a key.
    """
    parts = parse_key(key)
    if parts is None:
        raise ValueError("not an API key of this service")
    row = insert(ApiKey).values(
        id=parts[0],
        owner=owner,
        name=name,
        secret_sha256=secret_sha256(parts[1]),
        scopes=list(scopes),
        created_at=now,
    )
    session.execute(row.on_conflict_do_update(index_elements=["id"], set_={"scopes": row.excluded.scopes}))


class BadKeyFile(Exception):
    """The file of the first key holds something else."""


def ensure_first_key(settings: Settings) -> Path:
    """The first key, which may do everything, stands in `home/key` (mode 0600) and in the database, whichever
    of the two is new. Raises BadKeyFile."""
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
            key = path.read_text().strip()
            if parse_key(key) is None:
                raise BadKeyFile(
                    f"What stands in {path} is no API key: remove the file, and one is made, or write"
                    " one there that `python -m app.apikey` gave."
                )
            store_key(session, key, owner=settings.organization, name="first key", scopes=ALL_SCOPES)
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


async def authenticate(request: Request) -> Caller:
    """Whose key it is, or whose ticket. Counts the request where the key has a limit.

    Raises NotAuthenticated, not saying what was wrong with the key; TooMany.
    """
    ticket = tickets.take_out(request.scope)
    if ticket is not None and tickets.counts(request.scope, request.headers):
        async with _database(request).transaction() as session:
            return await _by_ticket(session, request, ticket)
    key_id, secret = parse_key(_bearer(request)) or ("", "")
    known = await _recognise(request, key_id, secret)
    if known is not None:
        return known
    # A transaction of its own: the route's holds no connection until the route itself asks for one.
    async with _database(request).transaction() as session:
        row = await session.get(ApiKey, key_id)
        # Hash and compare even when there is no such key, so that time does not tell.
        same = hmac.compare_digest(row.secret_sha256 if row else "", secret_sha256(secret))
        if row is None or not same or not _is_good(row):
            raise NotAuthenticated("This API key is unknown, expired or revoked.")
        return await _let_in(session, request, row)


async def _recognise(request: Request, key_id: str, secret: str) -> Caller | None:
    """The caller by one SELECT past SQLAlchemy, whose session and transaction cost four times that; nothing
    is remembered. None: not so easily, the usual way has the last word."""
    try:
        pool = request.app.state.glancing
        async with pool.connection(patience(pool)) as connection:
            row = await (await connection.execute(RECOGNISED, [key_id, LAST_USED_EVERY])).fetchone()
    except (psycopg.Error, PoolTimeout):
        return None
    same = hmac.compare_digest(row[0] if row else "", secret_sha256(secret))
    return Caller(key_id, row[1], frozenset(row[2]), row[3]) if row and same else None


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _is_good(row: ApiKey) -> bool:
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > datetime.now(UTC))


async def _let_in(session: AsyncSession, request: Request, row: ApiKey) -> Caller:
    if row.requests_per_minute is not None:
        request.state.headers = await spend_request(session, row.id, row.requests_per_minute)
    at = datetime.now(UTC)
    if row.last_used_at is None or at - row.last_used_at > LAST_USED_EVERY:
        row.last_used_at = at
    return Caller(row.id, row.owner, frozenset(row.scopes), row.storage_bytes)


async def _by_ticket(session: AsyncSession, request: Request, ticket: str) -> Caller:
    """The caller whose key asked for the ticket, who may do nothing but that download."""
    path: str = request.scope["path"]
    key_id = await tickets.use(session, ticket, path)
    row = None if key_id is None else await session.get(ApiKey, key_id)
    if row is None or not _is_good(row):
        raise NotAuthenticated(
            "This download ticket is unknown, used or expired: each is good for one download within a minute."
            " Ask for another: POST /v1/download_tickets.",
            code="invalid_ticket",
        )
    known = await _let_in(session, request, row)
    # What it was good for must not lie in a cache.
    headers = {**getattr(request.state, "headers", {}), "cache-control": "no-store"}
    request.state.headers = headers
    return replace(known, scopes=frozenset(filter(known.may, [tickets.scope_of(path) or ""])))


async def caller(request: Request) -> Caller:
    """Dependency of every route that needs a key: whom the gate let in. Raises NotAuthenticated."""
    known: Caller | None = getattr(request.state, "caller", None)
    if known is None:
        raise NotAuthenticated("No API key.", code="missing_api_key")
    return known


KnownCaller = Annotated[Caller, Depends(caller)]
