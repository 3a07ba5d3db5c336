"""The rows. Every rule that a row must obey is a constraint or a trigger (migrations/), so that even
hand-typed SQL cannot break it; times are the database's clock.

`seq` columns give a total order where many rows share a second: cursors page by them.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ColumnElement, ForeignKey, Index, UniqueConstraint, func, or_, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.mapping import Base as Base
from app.mapping import JsonObject as JsonObject
from app.mapping import make_created as _created
from app.mapping import make_seq as _seq
from app.mapping import now as now
from app.waiting import Offering, Waiting


class File(Base):
    """What was uploaded; its bytes lie in the store under `key`, which is null once they are gone."""

    __tablename__ = "files"
    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = _seq()
    owner: Mapped[str]
    key_id: Mapped[str | None]  # the API key it was uploaded with: limits are each key's
    key: Mapped[str | None]
    bytes: Mapped[int]
    sha256: Mapped[str]
    filename: Mapped[str]
    purpose: Mapped[str]
    format: Mapped[str]
    shape: Mapped[str | None]  # null: no row told it, or an older release took the file
    columns: Mapped[JsonObject | None]  # which of its columns are ours, where that was said
    status: Mapped[str]
    status_details: Mapped[str | None]
    problems: Mapped[list[Any] | None] = mapped_column(JSONB)
    rows: Mapped[int]
    created_at: Mapped[datetime] = _created()
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("status IN ('uploaded','processed','error')", "status"),
        Index(None, "owner", "seq"),
    )

    @classmethod
    def visible(cls, owner: str) -> tuple[ColumnElement[bool], ...]:
        """Conditions: the owner's, neither deleted nor past its time."""
        in_time = or_(cls.expires_at.is_(None), cls.expires_at > func.now())
        return cls.owner == owner, cls.deleted_at.is_(None), in_time


class Job(Waiting, Base):
    """One request to train. Only `lifecycle` changes `status`; `epoch` fences off workers that lost it."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = _seq()
    owner: Mapped[str]
    key_id: Mapped[str | None]
    idempotency_key: Mapped[str | None]
    request_sha256: Mapped[str]
    request_id: Mapped[str | None]  # of the POST, as it stands in the logs
    traceparent: Mapped[str | None]  # of the POST's trace, which the worker's spans join

    # What was asked
    model: Mapped[str]
    source: Mapped[str]
    training_file: Mapped[str] = mapped_column(ForeignKey("files.id"))
    validation_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    suffix: Mapped[str | None]
    seed: Mapped[int]
    job_metadata: Mapped[JsonObject | None] = mapped_column("metadata")
    method: Mapped[JsonObject]
    hyperparameters: Mapped[JsonObject]
    recipe: Mapped[JsonObject]
    integrations: Mapped[list[Any] | None] = mapped_column(JSONB)
    refuse_on: Mapped[list[Any] | None] = mapped_column(JSONB)

    # What was found out on the way
    resolved: Mapped[JsonObject | None]
    step: Mapped[int] = mapped_column(server_default=text("0"))
    total_steps: Mapped[int | None]
    phase: Mapped[str | None]
    trained_tokens: Mapped[int | None]
    estimated_finish: Mapped[datetime | None]
    fine_tuned_model: Mapped[str | None]
    result_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    parameters: Mapped[int | None]
    epoch_tokens: Mapped[int | None]  # trained or not, in one pass over the training examples
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_param: Mapped[str | None]

    # Where it stands
    status: Mapped[str] = mapped_column(server_default="queued")
    priority: Mapped[int] = mapped_column(server_default=text("0"))
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    max_attempts: Mapped[int]
    epoch: Mapped[int] = mapped_column(server_default=text("0"))
    worker: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    pause_requested_at: Mapped[datetime | None]
    not_before: Mapped[datetime] = _created()
    dispatched_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = _created()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    metrics_thinned_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(
            "status IN ('validating_files','queued','running','paused','succeeded','failed','cancelled')",
            "status",
        ),
        CheckConstraint("(status = 'running') = (worker IS NOT NULL)", "running_has_worker"),
        CheckConstraint("(status = 'running') = (lease_expires_at IS NOT NULL)", "running_has_lease"),
        CheckConstraint(
            "(status IN ('succeeded','failed','cancelled')) = (finished_at IS NOT NULL)", "ended_has_time"
        ),
        CheckConstraint("(status = 'failed') = (error_code IS NOT NULL)", "failed_has_error"),
        CheckConstraint("(status = 'succeeded') = (fine_tuned_model IS NOT NULL)", "succeeded_has_model"),
        # A queued job with a wish pending could neither be claimed nor end; a paused one neither.
        CheckConstraint(
            "status NOT IN ('queued','paused','validating_files') OR cancel_requested_at IS NULL",
            "no_cancel_at_rest",
        ),
        CheckConstraint("status = 'running' OR pause_requested_at IS NULL", "pause_only_running"),
        CheckConstraint("attempt >= 0 AND epoch >= attempt AND step >= 0", "counters"),
        UniqueConstraint("owner", "idempotency_key"),
        Index(None, "owner", "seq"),
        Index("ix_jobs_due", text("priority DESC"), "seq", postgresql_where=text("status = 'queued'")),
        Index("ix_jobs_waiting", "not_before", postgresql_where=text("status = 'queued'")),
        Index(None, "status"),
        Index(None, "started_at"),
        Index("ix_jobs_ended", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        Index("ix_jobs_lease", "lease_expires_at", postgresql_where=text("status = 'running'")),
        Index(None, "training_file"),
        Index(None, "validation_file"),
    )


class Attempt(Base):
    """One claim of a job by one worker, and how it ended."""

    __tablename__ = "attempts"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[str]
    started_at: Mapped[datetime] = _created()
    ended_at: Mapped[datetime | None] = mapped_column(index=True)
    exit_code: Mapped[int | None]
    reason: Mapped[str | None]
    # What it trained on, and how fast: tokens over all of its time, evaluations and saving included.
    device: Mapped[str | None]
    device_memory_bytes: Mapped[int | None]
    tokens_per_second: Mapped[float | None]
    __table_args__ = (
        Index("ix_attempts_measured", "started_at", postgresql_where=text("tokens_per_second IS NOT NULL")),
    )


class Event(Base):
    """A line of a job's history."""

    __tablename__ = "events"
    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = _seq()
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = _created()
    level: Mapped[str]
    type: Mapped[str] = mapped_column(server_default="message")
    code: Mapped[str]
    message: Mapped[str]
    data: Mapped[JsonObject | None]
    __table_args__ = (
        CheckConstraint("level IN ('info','warn','error')", "level"),
        Index(None, "job_id", "seq"),
    )


class Metric(Base):
    """What one step measured; evaluation columns are filled on the steps that evaluate."""

    __tablename__ = "metrics"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    epoch: Mapped[int]
    created_at: Mapped[datetime] = _created()
    epoch_progress: Mapped[float | None]
    loss: Mapped[float | None]
    learning_rate: Mapped[float | None]
    grad_norm: Mapped[float | None]
    tokens: Mapped[int | None]
    trained_tokens: Mapped[int | None]
    tokens_per_second: Mapped[float | None]
    memory_bytes: Mapped[int | None]
    skipped: Mapped[bool | None]
    valid_loss: Mapped[float | None]
    valid_perplexity: Mapped[float | None]
    valid_accuracy: Mapped[float | None]
    # Of preference training alone
    reward_chosen: Mapped[float | None]
    reward_rejected: Mapped[float | None]
    reward_margin: Mapped[float | None]
    reward_accuracy: Mapped[float | None]
    valid_reward_chosen: Mapped[float | None]
    valid_reward_rejected: Mapped[float | None]
    valid_reward_margin: Mapped[float | None]
    valid_reward_accuracy: Mapped[float | None]
    __table_args__ = (
        Index("ix_metrics_evaluated", "job_id", "step", postgresql_where=text("valid_loss IS NOT NULL")),
    )


class Checkpoint(Base):
    """A saved state of a job: complete and verified once its row exists."""

    __tablename__ = "checkpoints"
    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = _seq()
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    step: Mapped[int]
    epoch: Mapped[int]
    key: Mapped[str | None]
    name: Mapped[str] = mapped_column(unique=True)
    manifest_sha256: Mapped[str]
    bytes: Mapped[int]
    metrics: Mapped[JsonObject]
    best: Mapped[bool] = mapped_column(server_default=text("false"))
    pinned: Mapped[bool] = mapped_column(server_default=text("false"))  # kept until somebody unpins it
    created_at: Mapped[datetime] = _created()
    deleted_at: Mapped[datetime | None]
    __table_args__ = (UniqueConstraint("job_id", "step"), Index(None, "job_id", "seq"))


class Model(Base):
    """A published result; outlives its job's checkpoints."""

    __tablename__ = "models"
    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = _seq()
    owner: Mapped[str]
    name: Mapped[str] = mapped_column(unique=True)
    base: Mapped[str]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    key: Mapped[str | None]
    manifest: Mapped[JsonObject]
    bytes: Mapped[int]
    created_at: Mapped[datetime] = _created()
    deleted_at: Mapped[datetime | None]
    __table_args__ = (Index(None, "owner", "seq"),)


class Worker(Offering, Base):
    """A worker process that has been heard of; stale `seen_at` means it is gone."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    slots: Mapped[int]
    busy: Mapped[int]
    version: Mapped[str]
    started_at: Mapped[datetime] = _created()
    seen_at: Mapped[datetime] = _created()
    draining: Mapped[bool] = mapped_column(server_default=text("false"))
    devices: Mapped[list[Any] | None] = mapped_column(JSONB)  # GPUs; null: an older release's worker
