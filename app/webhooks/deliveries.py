"""What happens to a delivery's row: claimed by one process, recorded, asked for again, forgotten.

Claimed means leased: a process that dies with it loses it when the lease runs out, and another one sends it
again, under the same id. A receiver may so see an event twice, and never not at all.
"""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from app.tables import JsonObject, now
from app.webhooks.post import Outcome
from app.webhooks.rows import WebhookDelivery, WebhookEndpoint

JITTER = 0.2  # of a wait, at most added to it: what failed together need not come back together
PER_OWNER = 5  # deliveries of one owner under way, in all processes together
LOG_LINES = 20  # the latest attempts of a delivery that are kept
GONE = 410  # a receiver's word for "never again"


@dataclass(frozen=True)
class Claimed:
    """A delivery that is ours to send until its lease runs out; `attempts` is the fence."""

    id: str
    endpoint_id: str
    url: str
    salts: tuple[str, ...]
    hint: str
    event_id: str
    body: str
    attempts: int
    tries: int
    at: datetime
    log: tuple[JsonObject, ...]


def claim(session: Session, limit: int, lease: timedelta) -> list[Claimed]:
    """Up to `limit` deliveries that are due. One at a time an endpoint, which so sees its events one after
    the other, and PER_OWNER at a time an owner: neither a slow receiver nor many keep others waiting.
    """
    due = (
        WebhookDelivery.status == "pending",
        WebhookDelivery.due_at <= now,
        or_(WebhookDelivery.leased_until.is_(None), WebhookDelivery.leased_until <= now),
    )
    under_way = (
        select(WebhookDelivery.endpoint_id, WebhookEndpoint.owner)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.status == "pending", WebhookDelivery.leased_until > now)
        .cte("under_way")
    )
    first = (
        select(WebhookDelivery.id, WebhookDelivery.due_at, WebhookEndpoint.owner)
        .ext(distinct_on(WebhookDelivery.endpoint_id))
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(*due, WebhookEndpoint.deleted_at.is_(None), WebhookEndpoint.disabled_at.is_(None))
        .where(WebhookDelivery.endpoint_id.not_in(select(under_way.c.endpoint_id)))
        .order_by(WebhookDelivery.endpoint_id, WebhookDelivery.due_at, WebhookDelivery.seq)
        .subquery("first")
    )
    busy = select(func.count()).where(under_way.c.owner == first.c.owner).scalar_subquery()
    place = func.row_number().over(partition_by=first.c.owner, order_by=(first.c.due_at, first.c.id))
    ranked = select(first.c.id, (place + busy).label("place")).subquery("ranked")
    # Locks go with neither DISTINCT nor windows, so it is said twice that they are due: another process may
    # have claimed one in between, and its row is looked at anew once the lock is had.
    ids = session.scalars(
        select(WebhookDelivery.id)
        .where(WebhookDelivery.id.in_(select(ranked.c.id).where(ranked.c.place <= PER_OWNER)), *due)
        .order_by(WebhookDelivery.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    if not ids:
        return []
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(ids))
        .values(
            attempts=WebhookDelivery.attempts + 1, tries=WebhookDelivery.tries + 1, leased_until=now + lease
        )
        .execution_options(synchronize_session=False)
    )
    rows = session.execute(
        select(WebhookDelivery, WebhookEndpoint, now)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.id.in_(ids))
    )
    return [_claimed(row, endpoint, at) for row, endpoint, at in rows]


def _claimed(row: WebhookDelivery, endpoint: WebhookEndpoint, at: datetime) -> Claimed:
    return Claimed(
        id=row.id,
        endpoint_id=endpoint.id,
        url=endpoint.url,
        salts=salts(endpoint, at),
        hint=endpoint.secret_hint,
        event_id=row.event_id,
        body=row.body,
        attempts=row.attempts,
        tries=row.tries,
        at=at,
        log=tuple(row.log),
    )


def salts(endpoint: WebhookEndpoint, at: datetime) -> tuple[str, ...]:
    """Of the secrets that sign at this time, the present one first."""
    old = endpoint.old_secret_salt
    if old is not None and endpoint.old_secret_until is not None and at < endpoint.old_secret_until:
        return endpoint.secret_salt, old
    return (endpoint.secret_salt,)


def wait(tries: int, retries: tuple[timedelta, ...], wish: timedelta) -> timedelta | None:
    """Until the next try, after so many; None when that was the last. `wish` is the receiver's, if longer."""
    if tries > len(retries):
        return None
    planned = retries[tries - 1] * (1 + random.uniform(0, JITTER))  # noqa: S311  # no secret in it
    return max(planned, wish)


def record(session: Session, sent: Claimed, outcome: Outcome, retries: tuple[timedelta, ...]) -> str | None:
    """Write down how an attempt ended. The delivery's new status; None where the claim was lost meanwhile."""
    pause = wait(sent.tries, retries, outcome.retry_after)
    gone = outcome.status_code == GONE
    status = "delivered" if outcome.delivered else "failed" if gone or pause is None else "pending"
    line = {
        "attempt": sent.attempts,
        "at": int(sent.at.timestamp()),
        "status_code": outcome.status_code,
        "error": outcome.error,
        "seconds": round(outcome.seconds, 3),
    }
    done: str | None = session.scalar(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == sent.id, WebhookDelivery.attempts == sent.attempts)
        .values(
            status=status,
            due_at=now + (pause or timedelta(0)),
            leased_until=None,
            ended_at=None if status == "pending" else now,
            log=[*sent.log, line][-LOG_LINES:],
        )
        .returning(WebhookDelivery.status)
    )
    if done is not None and gone:
        _disable(session, sent.endpoint_id, sent.url)
    return done


def _disable(session: Session, endpoint_id: str, url: str) -> None:
    """The receiver wants nothing any more; what waits for it ends, and can be asked for again."""
    disabled = session.scalar(
        update(WebhookEndpoint)
        # Not one that has been given another address while this attempt was under way.
        .where(WebhookEndpoint.id == endpoint_id, WebhookEndpoint.url == url)
        .values(disabled_at=now)
        .returning(WebhookEndpoint.id)
    )
    if disabled is not None:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.endpoint_id == endpoint_id, WebhookDelivery.status == "pending")
            .values(status="failed", ended_at=now, leased_until=None)
        )


def ask_again(session: Session, delivery_id: str) -> None:
    """Send it anew, as soon as can be, with all its retries; one that is under way stays so."""
    session.execute(
        update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id)
        .values(status="pending", tries=0, due_at=now, ended_at=None)
    )


def forget(session: Session, kept: timedelta) -> None:
    """Remove what ended `kept` ago, and endpoints deleted as long ago with all that was for them."""
    session.execute(delete(WebhookDelivery).where(WebhookDelivery.ended_at < now - kept))
    session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.deleted_at < now - kept))
