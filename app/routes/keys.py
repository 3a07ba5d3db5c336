"""API keys: made by admins for anybody, shown once, listed, changed, revoked."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import AfterValidator, Field
from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app import paging, wire
from app.access import ANY_KEY, needs
from app.apikey import make_key, parse_key, redacted, secret_sha256
from app.audit import about
from app.auth import SCOPES, USER_SCOPES, KnownCaller
from app.body import Body
from app.dependencies import EverybodysSession, OpenSession
from app.errors import InvalidRequest, NotFound
from app.keyring import ApiKey
from app.tables import JsonObject, now

router = APIRouter(tags=["keys"])
own = APIRouter(prefix="/api_keys/me", dependencies=[needs(ANY_KEY)])
everybodys = APIRouter(prefix="/api_keys", dependencies=[needs("admin")])

LABEL = r"^[\w .@-]{1,64}$"
# What 64 bits hold, less a little: far beyond any disk or any minute.
Limit = Annotated[int | None, Field(ge=1, le=2**53)]
# Admins that revoke one another's key at the same moment queue up here: one key must stay.
ADMINS_LOCK = 0x66740002
ADMIN = "admin:write"


class Limits(Body):
    """What a key may use; a limit that is absent does not exist."""

    requests_per_minute: Limit = Field(None, description="More are 429 with `retry-after`")
    running_jobs: Limit = Field(None, description="Further jobs of the key wait in the queue")
    storage_bytes: Limit = Field(None, description="Of files, models and checkpoints; more is 400")


def _known(scopes: list[str]) -> list[str]:
    if unknown := [str(place) for place, scope in enumerate(scopes, 1) if scope not in SCOPES]:
        raise ValueError(f"number {', '.join(unknown)} is no scope; there are {', '.join(SCOPES)}.")
    return sorted(set(scopes))


def _ahead(time: int) -> int:
    # Up to the year 9999, the last one that a date can have.
    if not datetime.now(UTC).timestamp() < time < 253_000_000_000:
        raise ValueError("lies in the past, or is not in seconds.")
    return time


Name = Annotated[str, Field(pattern=LABEL, description="A label: letters, digits, space and . _ @ -")]
Scopes = Annotated[
    list[str],
    Field(min_length=1, max_length=len(SCOPES), description=", ".join(SCOPES)),
    AfterValidator(_known),
]
Time = Annotated[int, AfterValidator(_ahead)]


class KeyRequest(Body):
    """A key to be made."""

    name: Name
    owner: str | None = Field(None, pattern=LABEL, description="Whose things it sees; default your own")
    scopes: Scopes = Field(list(USER_SCOPES))
    expires_at: Time | None = Field(None, description="In seconds since 1970; default never")
    limits: Limits = Limits()


class KeyChange(Body):
    """What is to be different about a key; what is absent stays."""

    name: Name | None = None
    scopes: Scopes | None = None
    expires_at: Time | None = Field(None, description="In seconds since 1970")
    limits: Limits | None = Field(None, description="All of them anew: one that is left out is lifted")


def _shown(row: ApiKey) -> JsonObject:
    return {
        "id": row.id,
        "object": "api_key",
        "name": row.name,
        "owner": row.owner,
        "redacted_value": redacted(row.id),
        "scopes": row.scopes,
        "limits": {
            "requests_per_minute": row.requests_per_minute,
            "running_jobs": row.running_jobs,
            "storage_bytes": row.storage_bytes,
        },
        "created_at": wire.seconds(row.created_at),
        "expires_at": wire.seconds(row.expires_at),
        "revoked_at": wire.seconds(row.revoked_at),
        "last_used_at": wire.seconds(row.last_used_at),
    }


async def _find(session: AsyncSession, key_id: str) -> ApiKey:
    row = await session.get(ApiKey, key_id)
    if row is None:
        raise NotFound(f"No such API key: {key_id}", param="key_id", code="api_key_not_found")
    return row


@everybodys.post("")
async def create_api_key(body: KeyRequest, session: EverybodysSession, caller: KnownCaller) -> JsonObject:
    """Make a key. The answer alone holds it, under `value`; what is kept is a hash.

    `{"name": "laptop", "owner": "ann", "scopes": ["files:write", "jobs:write", "models:read", "generate"],
    "limits": {"requests_per_minute": 600, "running_jobs": 2, "storage_bytes": 50000000000}}`
    """
    key = make_key()
    key_id, secret = parse_key(key) or ("", "")
    row = ApiKey(
        id=key_id,
        owner=body.owner or caller.owner,
        name=body.name,
        secret_sha256=secret_sha256(secret),
        scopes=body.scopes,
        expires_at=None if body.expires_at is None else datetime.fromtimestamp(body.expires_at, UTC),
        **body.limits.model_dump(),
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    about(session, row.id)
    return {**_shown(row), "value": key}


@everybodys.get("")
async def list_api_keys(
    session: EverybodysSession,
    owner: Annotated[str | None, Query(description="Only keys of this owner")] = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    order: Literal["asc", "desc"] = "desc",
) -> JsonObject:
    """Everybody's keys, newest first, those that are revoked too: the audit log names them."""
    query = select(ApiKey)
    if owner is not None:
        query = query.where(ApiKey.owner == owner)
    rows, more = await paging.cut(session, query, ApiKey, after=after, limit=limit, order=order)
    return wire.page([_shown(row) for row in rows], more)


@own.get("")
async def retrieve_own_api_key(session: OpenSession, caller: KnownCaller) -> JsonObject:
    """The key you are asking with: its scopes, limits and end. Any key may."""
    return _shown(await _find(session, caller.key_id))


@own.delete("")
async def revoke_own_api_key(session: EverybodysSession, caller: KnownCaller) -> JsonObject:
    """Revoke the key you are asking with, at once: what to do with one that got about. Any key may."""
    # Everybody's: whether it is the last that may make keys is seen by the others'.
    about(session, caller.key_id)
    return await _revoke(session, caller.key_id)


@everybodys.get("/{key_id}")
async def retrieve_api_key(key_id: str, session: EverybodysSession) -> JsonObject:
    return _shown(await _find(session, key_id))


@everybodys.delete("/{key_id}")
async def revoke_api_key(key_id: str, session: EverybodysSession) -> JsonObject:
    """Revoke a key: from now on it is unknown. Its owner's things stay, and so does its line in the list.

    The last key that may make keys is refused (400 `last_admin_key`).
    """
    return await _revoke(session, key_id)


@everybodys.post("/{key_id}")
async def change_api_key(key_id: str, body: KeyChange, session: EverybodysSession) -> JsonObject:
    """Change a key's name, scopes, limits or end; whose it is and its secret stay. Holds at once.

    `{"limits": {"running_jobs": 4}}`
    """
    row = await _usable(session, key_id)
    if body.expires_at is not None or (body.scopes is not None and ADMIN not in body.scopes):
        await _keep_an_admin(session, row)
    changes = body.model_dump(include={"name", "scopes"}, exclude_none=True)
    if body.limits is not None:
        changes |= body.limits.model_dump()
    if body.expires_at is not None:
        changes["expires_at"] = datetime.fromtimestamp(body.expires_at, UTC)
    for name, value in changes.items():
        setattr(row, name, value)
    await session.flush()
    return _shown(row)


async def _usable(session: AsyncSession, key_id: str) -> ApiKey:
    """A key that is to be changed, and nobody else changes any meanwhile. Raises NotFound, InvalidRequest."""
    await session.execute(select(func.pg_advisory_xact_lock(ADMINS_LOCK)))
    row = await _find(session, key_id)
    if row.revoked_at is not None:
        raise InvalidRequest(f"The key {key_id} is revoked already.", param="key_id", code="already_revoked")
    return row


async def _keep_an_admin(session: AsyncSession, row: ApiKey) -> None:
    """Raises InvalidRequest where nobody could make keys without this one."""
    others = select(ApiKey.id).where(
        ApiKey.id != row.id,
        ApiKey.scopes.contains([ADMIN]),
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now),
    )
    if ADMIN in row.scopes and await session.scalar(others.limit(1)) is None:
        raise InvalidRequest(
            "This is the last key that may make keys; make another first.",
            param="key_id",
            code="last_admin_key",
        )


async def _revoke(session: AsyncSession, key_id: str) -> JsonObject:
    row = await _usable(session, key_id)
    await _keep_an_admin(session, row)
    row.revoked_at = datetime.now(UTC)
    return {"id": key_id, "object": "api_key.deleted", "deleted": True}


router.include_router(own)  # before the other: `me` is no id
router.include_router(everybodys)
