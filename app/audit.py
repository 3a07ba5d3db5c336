"""The audit log: a request that changes something leaves one entry, in the transaction that changes it.

The session dependency writes it (app/dependencies.py), so that a route can neither forget it nor write it
twice; `app.access.check_routes` sees to it that every route that changes something has such a session.
"""

import secrets
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.keyring import AuditEntry

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
TARGET = "audited"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_reading: set[Callable[..., Any]] = set()


def changes_nothing(endpoint: Endpoint) -> Endpoint:
    """Marks a POST that only reads: it asks for a scope to read, and leaves nothing in the audit log."""
    _reading.add(endpoint)
    return endpoint


def is_change(method: str, endpoint: Callable[..., Any] | None) -> bool:
    """Whether a request to that route may change something."""
    return method not in SAFE_METHODS and endpoint not in _reading


def about(session: AsyncSession, target: str | None) -> None:
    """Says what a request made or changed, where the URL does not name it; None: it changed nothing."""
    session.sync_session.info[TARGET] = target


def record(session: AsyncSession, request: Request, caller: Caller) -> None:
    """The entry of a request that has done its work. Never a key, never what was sent: ids and names only."""
    endpoint = request.scope["endpoint"]
    named = "/".join(str(value) for value in request.path_params.values())
    target = session.sync_session.info.get(TARGET, named)
    if target is None or not is_change(request.method, endpoint):
        return
    session.add(
        AuditEntry(
            id=f"audit-{secrets.token_hex(12)}",
            key_id=caller.key_id,
            owner=caller.owner,
            action=endpoint.__name__,
            target=target,
            request_id=request.state.request_id,
        )
    )
