"""The rows of webhooks: who wants to hear, and what is to be told to whom."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.tables import Base, now


class WebhookEndpoint(Base):
    """An address of an owner that wants to hear of events.

    Of its secrets only the salts are kept, and a hint of the present one: `app.webhooks.secret`.
    """

    __tablename__ = "webhook_endpoints"
    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(always=True), unique=True)
    owner: Mapped[str]
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[Any]] = mapped_column(JSONB)
    secret_salt: Mapped[str]
    secret_hint: Mapped[str]
    old_secret_salt: Mapped[str | None]
    old_secret_until: Mapped[datetime | None]
    rotated_at: Mapped[datetime] = mapped_column(server_default=now)
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    updated_at: Mapped[datetime] = mapped_column(server_default=now)
    disabled_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("(old_secret_salt IS NULL) = (old_secret_until IS NULL)", "old_secret_ends"),
        Index(None, "owner", "seq"),
    )


class WebhookDelivery(Base):
    """One event for one endpoint. `body` is what is signed and sent, byte by byte.

    `attempts` grows with each claim and is its fence: whoever was given up for dead writes no result.
    `tries` counts from the last time that somebody asked for it, and picks the wait until the next.
    """

    __tablename__ = "webhook_deliveries"
    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(always=True), unique=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_id: Mapped[str]
    event_type: Mapped[str]
    body: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    tries: Mapped[int] = mapped_column(server_default=text("0"))
    due_at: Mapped[datetime] = mapped_column(server_default=now)
    leased_until: Mapped[datetime | None]
    log: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    ended_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("status IN ('pending','delivered','failed')", "status"),
        CheckConstraint("(status = 'pending') = (ended_at IS NULL)", "ended_has_time"),
        CheckConstraint("attempts >= tries AND tries >= 0", "counters"),
        UniqueConstraint("endpoint_id", "event_id"),
        Index(None, "endpoint_id", "seq"),
        Index("ix_webhook_deliveries_failed", "ended_at", postgresql_where=text("status = 'failed'")),
        Index("ix_webhook_deliveries_due", "due_at", postgresql_where=text("status = 'pending'")),
    )
