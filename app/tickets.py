"""Download tickets: what a browser shows instead of a key where it can send no header, in a link.

A ticket opens one path, for GET, once, within a minute, and only as long as the key that asked for it is
good. Its use is the deletion of its row, so that of two requests with one ticket, at whatever processes, one
is let in.
"""

import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, unquote

from sqlalchemy import Index, delete, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column
from starlette.types import Scope

from app.apikey import TICKET_BEGINS, secret_sha256
from app.tables import Base, now

LIVES_SECONDS = 60
# What can be downloaded, and the scope that each route asks for.
DOWNLOADS = (
    (re.compile(r"/v1/files/[^/]+/content"), "files:read"),
    (re.compile(r"/v1/models/.+/download"), "models:read"),
    (re.compile(r"/v1/models/.+/files/.+"), "models:read"),
)
_IN_QUERY = re.compile(rb"(?:^|&)ticket=([^&]*)")


class DownloadTicket(Base):
    """A ticket that nobody has used; `path` is as the server sees it, percent-decoded."""

    __tablename__ = "download_tickets"
    secret_sha256: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str]
    path: Mapped[str]
    expires_at: Mapped[datetime]
    __table_args__ = (Index(None, "expires_at"), {"prefixes": ["UNLOGGED"]})


def scope_of(path: str) -> str | None:
    """The scope that a download's path asks for; None: nothing can be downloaded there."""
    return next((scope for form, scope in DOWNLOADS if form.fullmatch(path)), None)


def decoded(path: str) -> str | None:
    """The path as the server will see it; None where it is none: not UTF-8, or with control characters."""
    try:
        seen = unquote(path, errors="strict")
    except UnicodeDecodeError:
        return None
    return seen if seen.isprintable() else None


async def make(session: AsyncSession, key_id: str, path: str) -> tuple[str, datetime]:
    """A new ticket's secret and its end; clears away those that nobody used in time."""
    await session.execute(delete(DownloadTicket).where(DownloadTicket.expires_at < now))
    secret = TICKET_BEGINS + secrets.token_urlsafe(32)
    ends = now + func.make_interval(0, 0, 0, 0, 0, 0, LIVES_SECONDS)
    row = insert(DownloadTicket).values(
        secret_sha256=secret_sha256(secret), key_id=key_id, path=path, expires_at=ends
    )
    expires_at = (await session.execute(row.returning(DownloadTicket.expires_at))).scalar_one()
    return secret, expires_at


async def use(session: AsyncSession, secret: str, path: str) -> str | None:
    """The id of the key that a ticket stands for, which is gone once this transaction commits."""
    used: str | None = await session.scalar(
        delete(DownloadTicket)
        .where(
            DownloadTicket.secret_sha256 == secret_sha256(secret),
            DownloadTicket.path == path,
            DownloadTicket.expires_at > now,
        )
        .returning(DownloadTicket.key_id)
        .execution_options(synchronize_session=False)
    )
    return used


def url_of(path: str, secret: str) -> str:
    return f"{quote(path, safe='/:')}?ticket={secret}"


def take_out(scope: Scope) -> str | None:
    """The ticket that a request shows, taken out of its query, which a server may log; None without any."""
    query: bytes = scope.get("query_string", b"")
    shown = _IN_QUERY.search(query)
    if shown is None:
        return None
    scope["query_string"] = _IN_QUERY.sub(b"", query).lstrip(b"&")
    return unquote(shown[1].decode("ascii", "replace"))


def counts(scope: Scope, headers: Mapping[str, str]) -> bool:
    """Whether a ticket is looked at in this request: for a key's own there is no need."""
    return scope["method"] == "GET" and "authorization" not in headers and scope_of(scope["path"]) is not None
