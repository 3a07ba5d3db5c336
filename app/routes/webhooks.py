"""Webhook endpoints: create, list, retrieve, update, delete, rotate the secret, test."""

import secrets
from typing import Annotated

from fastapi import APIRouter, Header, Query
from pydantic import Field
from sqlalchemy import func, select

from app import paging, wire
from app.access import needs
from app.audit import about
from app.auth import KnownCaller
from app.body import Body
from app.dependencies import CurrentSettings, OpenCourier, OpenSession
from app.errors import InvalidRequest
from app.lifecycle.wishes import TRIES_SPAN
from app.settings import Settings
from app.tables import JsonObject, now
from app.webhooks import address, deliveries, endpoints, event, secret
from app.webhooks.event import EventType
from app.webhooks.rows import WebhookEndpoint

router = APIRouter(tags=["webhooks"], dependencies=[needs("webhooks")])
# How often the official SDK has sent this request before, without seeing an answer.
RetryCount = Annotated[int, Header(ge=0, include_in_schema=False)]
MAX_ENDPOINTS = 50  # of one owner
OLD_SECRET_LIVES = func.make_interval(0, 0, 0, 0, 24)


class EndpointRequest(Body):
    """A new endpoint."""

    name: str = Field(min_length=1, max_length=256, description="For people")
    url: str = Field(description="An https URL that takes a POST")
    event_types: list[EventType] = Field(min_length=1, max_length=16, description="What it wants to hear of")


class EndpointUpdate(Body):
    """What is to change; the rest stays."""

    name: str | None = Field(None, min_length=1, max_length=256)
    url: str | None = Field(None, description="Given anew, a disabled endpoint is enabled again")
    event_types: list[EventType] | None = Field(None, min_length=1, max_length=16)


class Rotation(Body):
    """How to change the secret."""

    keep_old_secret_active_for_24_hours: bool = Field(
        False, description="Sign with both for a day, so that receivers can change over"
    )


class SampleRequest(Body):
    """What to send as a test."""

    event_type: EventType


def _check_url(url: str, settings: Settings) -> None:
    try:
        address.parse(url, settings.webhook_allow)
    except address.Forbidden as refusal:
        raise InvalidRequest(str(refusal), param="url", code="invalid_url") from refusal


def _secret(row: WebhookEndpoint, settings: Settings) -> str:
    return secret.derive(secret.read_key(settings.home), row.id, row.secret_salt)


@router.post("/webhook_endpoints")
async def create_endpoint(
    body: EndpointRequest,
    session: OpenSession,
    settings: CurrentSettings,
    caller: KnownCaller,
    x_stainless_retry_count: RetryCount = 0,
) -> JsonObject:
    """Register a URL that is told when a job ends. `signing_secret` is shown here and never again.

    `{"name": "ci", "url": "https://example.com/hook", "event_types": ["fine_tuning.job.succeeded"]}`

    Only https, on port 443 or 8443, to public addresses, unless FINETUNED_WEBHOOK_ALLOW permits more.
    """
    _check_url(body.url, settings)
    kinds = list(dict.fromkeys(body.event_types))
    # One at a time an owner: tries of one request find one another, and the limit is exact.
    await session.execute(
        select(func.pg_advisory_xact_lock(func.hashtextextended(f"webhook_endpoints {caller.owner}", 0)))
    )
    if x_stainless_retry_count:
        same = endpoints.owned(caller).where(
            WebhookEndpoint.name == body.name,
            WebhookEndpoint.url == body.url,
            WebhookEndpoint.event_types == kinds,
            WebhookEndpoint.created_at > now - TRIES_SPAN,
        )
        made = await session.scalar(same.order_by(WebhookEndpoint.seq.desc()).limit(1))
        if made is not None:
            about(session, None)
            return wire.webhook_endpoint(made, _secret(made, settings))
    count = await session.scalar(select(func.count()).select_from(endpoints.owned(caller).subquery())) or 0
    if count >= MAX_ENDPOINTS:
        raise InvalidRequest(
            f"There are {MAX_ENDPOINTS} webhook endpoints already; delete one.", code="too_many_endpoints"
        )
    row = WebhookEndpoint(
        id=f"we_{secrets.token_hex(12)}",
        owner=caller.owner,
        name=body.name,
        url=body.url,
        event_types=kinds,
        secret_salt=secret.new_salt(),
    )
    made_secret = _secret(row, settings)
    row.secret_hint = secret.hint(made_secret)
    about(session, row.id)
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return wire.webhook_endpoint(row, made_secret)


@router.get("/webhook_endpoints")
async def list_endpoints(
    session: OpenSession,
    caller: KnownCaller,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> JsonObject:
    """The caller's endpoints, newest first."""
    ever = select(WebhookEndpoint).where(WebhookEndpoint.owner == caller.owner)
    rows, more = await paging.cut(
        session, endpoints.owned(caller), WebhookEndpoint, after=after, limit=limit, ever=ever
    )
    return wire.page([wire.webhook_endpoint(row) for row in rows], more)


@router.get("/webhook_endpoints/{webhook_endpoint_id}")
async def retrieve_endpoint(
    webhook_endpoint_id: str, session: OpenSession, caller: KnownCaller
) -> JsonObject:
    """One endpoint, with a hint of its secret. `disabled` says that it answered 410 and is left alone."""
    return wire.webhook_endpoint(await endpoints.find(session, webhook_endpoint_id, caller))


@router.post("/webhook_endpoints/{webhook_endpoint_id}")
async def update_endpoint(
    webhook_endpoint_id: str,
    body: EndpointUpdate,
    session: OpenSession,
    settings: CurrentSettings,
    caller: KnownCaller,
) -> JsonObject:
    """Change the name, the URL or the event types: `{"url": "https://example.com/new"}`.

    Deliveries that wait go to the new URL. Naming the URL, be it the same, enables a disabled endpoint again.
    """
    row = await endpoints.find(session, webhook_endpoint_id, caller, lock=True)
    changes: JsonObject = {}
    if body.name is not None:
        changes["name"] = body.name
    if body.event_types is not None:
        changes["event_types"] = list(dict.fromkeys(body.event_types))
    if body.url is not None:
        _check_url(body.url, settings)
        changes |= {"url": body.url, "disabled_at": None}
    changes = {name: value for name, value in changes.items() if getattr(row, name) != value}
    if not changes:
        about(session, None)
    else:
        for name, value in changes.items():
            setattr(row, name, value)
        row.updated_at = now
        await session.flush()
        await session.refresh(row)
    return wire.webhook_endpoint(row)


@router.delete("/webhook_endpoints/{webhook_endpoint_id}")
async def delete_endpoint(webhook_endpoint_id: str, session: OpenSession, caller: KnownCaller) -> JsonObject:
    """Delete an endpoint. What waits for it is never sent."""
    row = await endpoints.find(session, webhook_endpoint_id, caller, lock=True)
    row.deleted_at = now
    return {"id": row.id, "object": "webhook_endpoint.deleted", "deleted": True}


@router.post("/webhook_endpoints/{webhook_endpoint_id}/rotate_secret")
async def rotate_secret(
    webhook_endpoint_id: str,
    session: OpenSession,
    settings: CurrentSettings,
    caller: KnownCaller,
    body: Rotation | None = None,
    x_stainless_retry_count: RetryCount = 0,
) -> JsonObject:
    """Make a new secret, shown here and never again. The old one signs no more, or for another 24 hours:
    `{"keep_old_secret_active_for_24_hours": true}`; each delivery then carries both signatures.
    """
    row = await endpoints.find(session, webhook_endpoint_id, caller, lock=True)
    moment = await session.scalar(select(now))
    # The SDK's second try must not make an old secret of one that nobody has seen.
    if x_stainless_retry_count and moment is not None and row.rotated_at > moment - TRIES_SPAN:
        about(session, None)
        return wire.webhook_endpoint(row, _secret(row, settings))
    keep = body is not None and body.keep_old_secret_active_for_24_hours
    row.old_secret_salt = row.secret_salt if keep else None
    row.old_secret_until = now + OLD_SECRET_LIVES if keep else None
    row.secret_salt = secret.new_salt()
    made = _secret(row, settings)
    row.secret_hint = secret.hint(made)
    row.rotated_at = row.updated_at = now
    await session.flush()
    await session.refresh(row)
    return wire.webhook_endpoint(row, made)


@router.post("/webhook_endpoints/{webhook_endpoint_id}/test")
async def test_endpoint(
    webhook_endpoint_id: str,
    body: SampleRequest,
    session: OpenSession,
    courier: OpenCourier,
    caller: KnownCaller,
) -> JsonObject:
    """Send a sample event now, once, and answer with the receiver's status, whatever it is:
    `{"event_type": "fine_tuning.job.succeeded"}`. Its job, `ftjob-000000000000000000000000`, does not exist.

    400 `webhook_unreachable` says why no answer came.
    """
    row = await endpoints.find(session, webhook_endpoint_id, caller)
    moment = await session.scalar(select(now))
    salts = deliveries.salts(row, moment) if moment is not None else ()
    known = (row.id, row.url, salts, row.secret_hint)
    await session.rollback()  # gives the connection back: a receiver may take seconds
    outcome = await courier.test(*known, body.event_type)
    if outcome.status_code is None:
        raise InvalidRequest(outcome.error or "No answer.", code="webhook_unreachable")
    return {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": webhook_endpoint_id,
        "event_type": body.event_type,
        "status_code": outcome.status_code,
        "success": True,
    }


@router.get("/webhook_event_types")
async def list_event_types(caller: KnownCaller) -> JsonObject:
    """What an endpoint can hear of."""
    return {"object": "list", "data": list(event.TYPES)}
