"""The rows of keys: who may do what and how much of it, what was done, how much is spent."""

from datetime import datetime

from sqlalchemy import Identity, Index, String
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.tables import Base, now


class ApiKey(Base):
    """A key of an owner; only the SHA-256 of its secret is kept. A limit that is null does not exist."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(always=True), unique=True)
    owner: Mapped[str]
    name: Mapped[str]
    secret_sha256: Mapped[str]
    scopes: Mapped[list[str]] = mapped_column(ARRAY(String))
    requests_per_minute: Mapped[int | None]
    running_jobs: Mapped[int | None]
    storage_bytes: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]


class RequestBudget(Base):
    """What a key with a limit may still ask at once, as of `at`; unlogged, so a crash fills it up again."""

    __tablename__ = "request_budgets"
    key_id: Mapped[str] = mapped_column(primary_key=True)
    remaining: Mapped[float]
    at: Mapped[datetime] = mapped_column(server_default=now)


class AuditEntry(Base):
    """Who did what to which thing. A trigger refuses to change or delete any of it."""

    __tablename__ = "audit_log"
    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(always=True), unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    key_id: Mapped[str]
    owner: Mapped[str]
    action: Mapped[str]
    target: Mapped[str]
    request_id: Mapped[str]
    __table_args__ = (Index(None, "owner", "seq"),)
