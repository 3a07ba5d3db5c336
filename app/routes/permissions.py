"""Checkpoint permissions: let another owner use a model of yours, and take it back."""

import secrets
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import paging, permissions, wire
from app.access import needs
from app.auth import Caller, KnownCaller
from app.body import Body
from app.database import run
from app.dependencies import OpenSession
from app.errors import NotFound
from app.permissions import CheckpointPermission
from app.tables import JsonObject

router = APIRouter(prefix="/fine_tuning/checkpoints", tags=["fine-tuning"], dependencies=[needs("models")])
ProjectId = Annotated[str, Field(min_length=1, max_length=256)]
PATH = "/{fine_tuned_model_checkpoint:path}/permissions"


class PermissionRequest(Body):
    """Whom to permit."""

    project_ids: list[ProjectId] = Field(
        min_length=1, max_length=100, description="Owners, by the name that their API keys carry"
    )


async def _check_own(session: AsyncSession, name: str, caller: Caller) -> None:
    if not await run(session, permissions.is_own, name, caller.owner):
        raise NotFound(
            f"There is no model or checkpoint {name!r} of yours to share.",
            param="fine_tuned_model_checkpoint",
            code="model_not_found",
        )


@router.post(PATH)
async def create_permissions(
    fine_tuned_model_checkpoint: str, body: PermissionRequest, session: OpenSession, caller: KnownCaller
) -> JsonObject:
    """Permit other owners to generate with a model or a checkpoint of yours, and to train from it:
    `{"project_ids": ["research"]}`. Answers the list of these permissions, old ones among them.

    The name is a model's or a checkpoint's (`ft:…`), not a `ftckpt_` id. Only you can download, share or
    delete it; but what others train from it is theirs. Whether such an owner exists is not checked.
    """
    await _check_own(session, fine_tuned_model_checkpoint, caller)
    ids = {project: f"cp_{secrets.token_hex(12)}" for project in body.project_ids}
    rows = await run(session, permissions.grant, caller.owner, fine_tuned_model_checkpoint, ids)
    return wire.page([wire.checkpoint_permission(row) for row in rows], has_more=False)


@router.get(PATH)
async def list_permissions(
    fine_tuned_model_checkpoint: str,
    session: OpenSession,
    caller: KnownCaller,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    order: Literal["ascending", "descending"] = "descending",
    project_id: Annotated[str | None, Query(description="Only this project's")] = None,
) -> JsonObject:
    """Who may use a model or a checkpoint of yours."""
    await _check_own(session, fine_tuned_model_checkpoint, caller)
    names = (fine_tuned_model_checkpoint, permissions.NOTHING)
    ever = select(CheckpointPermission).where(
        CheckpointPermission.owner == caller.owner, CheckpointPermission.model_name.in_(names)
    )
    query = select(CheckpointPermission).where(CheckpointPermission.model_name == fine_tuned_model_checkpoint)
    if project_id is not None:
        query = query.where(CheckpointPermission.project_id == project_id)
    rows, more = await paging.cut(
        session,
        query,
        CheckpointPermission,
        after=after,
        limit=limit,
        order="asc" if order == "ascending" else "desc",
        ever=ever,
    )
    return wire.page([wire.checkpoint_permission(row) for row in rows], more)


@router.delete(PATH + "/{permission_id}")
async def delete_permission(
    fine_tuned_model_checkpoint: str, permission_id: str, session: OpenSession, caller: KnownCaller
) -> JsonObject:
    """Take a permission back. What was queued with it before goes on."""
    await _check_own(session, fine_tuned_model_checkpoint, caller)
    name = fine_tuned_model_checkpoint
    if not await run(session, permissions.take_back, caller.owner, name, permission_id):
        raise NotFound(
            f"No such permission of this checkpoint: {permission_id}",
            param="permission_id",
            code="permission_not_found",
        )
    return {"id": permission_id, "object": "checkpoint.permission", "deleted": True}
