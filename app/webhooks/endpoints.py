"""Finding endpoints: only their owner ever does."""

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.auth import Caller
from app.errors import NotFound
from app.webhooks.rows import WebhookEndpoint


def owned(caller: Caller) -> Select[WebhookEndpoint]:
    return select(WebhookEndpoint).where(
        WebhookEndpoint.owner == caller.owner, WebhookEndpoint.deleted_at.is_(None)
    )


async def find(
    session: AsyncSession, endpoint_id: str, caller: Caller, *, lock: bool = False
) -> WebhookEndpoint:
    query = owned(caller).where(WebhookEndpoint.id == endpoint_id)
    # Not a lock that the end of a job would have to wait for.
    row = await session.scalar(query.with_for_update(key_share=True) if lock else query)
    if row is None:
        raise NotFound(
            f"No such webhook endpoint: {endpoint_id}",
            param="webhook_endpoint_id",
            code="webhook_endpoint_not_found",
        )
    return row
