"""The rows of uploads in parts."""

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Index
from sqlalchemy.orm import Mapped, mapped_column

from app.tables import Base, now


class Upload(Base):
    """A file that arrives in parts. Their bytes lie in the store below `key`, which is null once they are
    gone; `deleted_at` says that they are to go, which they are as soon as it is no longer pending."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(always=True), unique=True)
    owner: Mapped[str]
    key_id: Mapped[str | None]
    key: Mapped[str | None]
    bytes: Mapped[int]
    filename: Mapped[str]
    mime_type: Mapped[str]
    purpose: Mapped[str]
    file_expires_seconds: Mapped[int | None]
    status: Mapped[str]
    request_sha256: Mapped[str | None]  # of the request that completed it
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    expires_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("status IN ('pending','completed','cancelled','expired')", "status"),
        CheckConstraint("(status = 'completed') = (file_id IS NOT NULL)", "completed_has_file"),
        CheckConstraint("(status = 'pending') = (deleted_at IS NULL)", "ended_has_time"),
    )


class UploadPart(Base):
    """Some of an upload's bytes, complete and on disk once the row exists."""

    __tablename__ = "upload_parts"
    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"))
    bytes: Mapped[int]
    sha256: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    __table_args__ = (Index(None, "upload_id"),)
