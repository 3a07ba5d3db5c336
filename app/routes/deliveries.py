"""Deliveries of a webhook endpoint: what was sent and what came of it, and sending it again."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import paging, wire
from app.access import needs
from app.auth import KnownCaller
from app.database import run
from app.dependencies import OpenSession
from app.errors import InvalidRequest, NotFound
from app.tables import JsonObject
from app.webhooks import deliveries, endpoints
from app.webhooks.rows import WebhookDelivery

router = APIRouter(tags=["webhooks"], dependencies=[needs("webhooks")])


@router.get("/webhook_endpoints/{webhook_endpoint_id}/deliveries")
async def list_deliveries(
    webhook_endpoint_id: str,
    session: OpenSession,
    caller: KnownCaller,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    status: Annotated[Literal["pending", "delivered", "failed"] | None, Query()] = None,
) -> JsonObject:
    """What was sent to an endpoint or is to be, newest first; `log` has the latest 20 attempts of each.

    Kept for 30 days after their end (FINETUNED_WEBHOOK_LOG).
    """
    await endpoints.find(session, webhook_endpoint_id, caller)
    ever = query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == webhook_endpoint_id)
    if status is not None:
        query = query.where(WebhookDelivery.status == status)
    rows, more = await paging.cut(session, query, WebhookDelivery, after=after, limit=limit, ever=ever)
    return wire.page([wire.webhook_delivery(row) for row in rows], more)


async def _find(session: AsyncSession, endpoint_id: str, delivery_id: str) -> WebhookDelivery:
    row = await session.scalar(
        select(WebhookDelivery).where(
            WebhookDelivery.id == delivery_id, WebhookDelivery.endpoint_id == endpoint_id
        )
    )
    if row is None:
        raise NotFound(
            f"No such delivery of this endpoint: {delivery_id}",
            param="delivery_id",
            code="webhook_delivery_not_found",
        )
    return row


@router.get("/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}")
async def retrieve_delivery(
    webhook_endpoint_id: str, delivery_id: str, session: OpenSession, caller: KnownCaller
) -> JsonObject:
    """One delivery with its log."""
    await endpoints.find(session, webhook_endpoint_id, caller)
    return wire.webhook_delivery(await _find(session, webhook_endpoint_id, delivery_id))


@router.post("/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}/redeliver")
async def redeliver(
    webhook_endpoint_id: str, delivery_id: str, session: OpenSession, caller: KnownCaller
) -> JsonObject:
    """Send a delivery again, at once and with all its retries; one that waits for its next try is brought
    forward. The `webhook-id` stays, so a receiver that has seen it can tell.
    """
    endpoint = await endpoints.find(session, webhook_endpoint_id, caller)
    row = await _find(session, webhook_endpoint_id, delivery_id)
    if endpoint.disabled_at is not None:
        raise InvalidRequest(
            "This endpoint answered 410 and is disabled; give its URL in an update to enable it again.",
            code="webhook_endpoint_disabled",
        )
    await run(session, deliveries.ask_again, row.id)
    await session.refresh(row)
    return wire.webhook_delivery(row)
