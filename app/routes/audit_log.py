"""The audit log, for admins."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from sqlalchemy import select

from app import paging, wire
from app.access import needs
from app.dependencies import EverybodysSession
from app.keyring import AuditEntry
from app.tables import JsonObject

router = APIRouter(prefix="/audit_log", tags=["keys"], dependencies=[needs("admin")])


def _entry(row: AuditEntry) -> JsonObject:
    return {
        "id": row.id,
        "object": "audit_log.entry",
        "created_at": wire.seconds(row.created_at),
        "key_id": row.key_id,
        "owner": row.owner,
        "action": row.action,
        "target": row.target,
        "request_id": row.request_id,
    }


@router.get("")
async def list_audit_log(
    session: EverybodysSession,
    owner: Annotated[str | None, Query(description="Only what keys of this owner did")] = None,
    key_id: Annotated[str | None, Query(description="Only what this key did")] = None,
    action: Annotated[str | None, Query(description="Only this, such as `delete_file`")] = None,
    after: Annotated[str | None, Query(description="The last entry of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    order: Literal["asc", "desc"] = "desc",
) -> JsonObject:
    """Who did what to which thing: one entry for each request that changed something, newest first.

    Nobody can change or delete an entry; the database refuses it.
    `{"id": "audit-4c…", "object": "audit_log.entry", "created_at": 1796083200, "key_id": "a81Xk0Zw",
    "owner": "finetuned", "action": "create_job", "target": "ftjob-9d…", "request_id": "req_71…"}`
    """
    query = select(AuditEntry)
    for column, wanted in (
        (AuditEntry.owner, owner),
        (AuditEntry.key_id, key_id),
        (AuditEntry.action, action),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    rows, more = await paging.cut(session, query, AuditEntry, after=after, limit=limit, order=order)
    return wire.page([_entry(row) for row in rows], more)
