"""What users ask of a job: create, cancel, pause, resume. `claims` draws the states."""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import case, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.database import WAKE
from app.errors import InvalidRequest
from app.lifecycle import endings
from app.lifecycle.claims import ENDED
from app.lifecycle.history import note
from app.tables import Job, JsonObject, now

# How long ago the first try of a repeated request may have been: the SDK waits 10 minutes for an answer.
TRIES_SPAN = timedelta(minutes=15)


def created_before(
    session: Session, owner: str, idempotency_key: str | None, request_sha256: str, *, repeated: bool
) -> Job | None:
    """The job that this very request has made already: under its key, or, where it has none and its sender
    says that it is `repeated`, the latest that the same body made.

    The official SDK repeats a request of which it never saw the answer without a key. Two equal jobs would
    train to the same weights, bit for bit, so nobody loses one who meant two within those minutes.

    Raises InvalidRequest (idempotency_conflict) when the key was used for another request.
    """
    if idempotency_key is not None:
        job: Job | None = session.scalar(
            select(Job).where(Job.owner == owner, Job.idempotency_key == idempotency_key)
        )
        if job is not None and job.request_sha256 != request_sha256:
            raise InvalidRequest(
                "This Idempotency-Key was used for another request; use a new key for a new job.",
                param="Idempotency-Key",
                code="idempotency_conflict",
            )
        return job
    # The first try may be on its way still, in another process: whoever comes second waits for its commit.
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(owner + request_sha256, 0))))
    if not repeated:
        return None
    latest: Job | None = session.scalar(
        select(Job)
        .where(
            Job.owner == owner,
            Job.request_sha256 == request_sha256,
            Job.idempotency_key.is_(None),
            Job.status != "cancelled",
            Job.created_at > now - TRIES_SPAN,
        )
        .order_by(Job.seq.desc())
        .limit(1)
    )
    return latest


def create(session: Session, values: JsonObject) -> Job:
    """The new job; or the one that another try of the same request has made in this moment.

    Raises InvalidRequest (idempotency_conflict) when the key was used for another request.
    """
    made: Job | None = session.scalar(
        insert(Job)
        .values(values)
        .on_conflict_do_nothing(index_elements=["owner", "idempotency_key"])
        .returning(Job)
    )
    if made is not None:
        session.info[WAKE] = True
        note(session, made.id, "info", "created", "Created; waiting for a worker.")
        return made
    before = created_before(
        session, values["owner"], values["idempotency_key"], values["request_sha256"], repeated=True
    )
    if before is None:
        raise LookupError("a job that was in the way is gone")
    return before


def cancel(session: Session, job_id: str, owner: str) -> None:
    """Ends a waiting job at once; a running one is asked to save and stop at its next heartbeat.

    Raises InvalidRequest where the job has ended or is being cancelled already.
    """
    status = session.scalar(
        update(Job)
        .where(
            Job.id == job_id,
            Job.owner == owner,
            Job.status.not_in(ENDED),
            Job.cancel_requested_at.is_(None),
        )
        .values(
            status=case((Job.status == "running", Job.status), else_=literal("cancelled")),
            finished_at=case((Job.status != "running", now)),
            cancel_requested_at=case((Job.status == "running", now)),
        )
        .returning(Job.status)
    )
    if status is None:
        raise _wrong_state(session, job_id, "cancelled")
    if status == "cancelled":
        note(session, job_id, "info", "cancelled", "Cancelled before it was started or while it was paused.")
        endings.tell(session, job_id, "cancelled")
    else:
        note(session, job_id, "info", "cancel_requested", "Cancelling: the worker saves and stops.")


def pause(session: Session, job_id: str, owner: str) -> None:
    """Sets a waiting job aside at once; a running one saves a checkpoint first.

    Raises InvalidRequest where the job is neither queued nor running, or is already pausing or cancelling.
    """
    status = session.scalar(
        update(Job)
        .where(
            Job.id == job_id,
            Job.owner == owner,
            Job.status.in_(("validating_files", "queued", "running")),
            Job.cancel_requested_at.is_(None),
            Job.pause_requested_at.is_(None),
        )
        .values(
            status=case((Job.status == "running", Job.status), else_=literal("paused")),
            pause_requested_at=case((Job.status == "running", now)),
        )
        .returning(Job.status)
    )
    if status is None:
        raise _wrong_state(session, job_id, "paused")
    if status == "paused":
        note(session, job_id, "info", "paused", "Paused before it was started.")
    else:
        note(session, job_id, "info", "pause_requested", "Pausing: the worker saves and stops.")


def resume(session: Session, job_id: str, owner: str) -> None:
    """paused → queued. Raises InvalidRequest where the job is not paused."""
    done = session.scalar(
        update(Job)
        .where(Job.id == job_id, Job.owner == owner, Job.status == "paused")
        .values(status="queued", not_before=now, dispatched_at=None)
        .returning(Job.id)
    )
    if done is None:
        raise _wrong_state(session, job_id, "resumed")
    session.info[WAKE] = True
    note(session, job_id, "info", "resumed", "Resumed; goes on from the last checkpoint.")


def is_fulfilled(job: Job, verb: Callable[[Session, str, str], None]) -> bool:
    """Whether the job already is, or is on its way to, where `verb` would send it."""
    if verb is cancel:
        return job.status == "cancelled" or job.cancel_requested_at is not None
    if verb is pause:
        return job.status == "paused" or job.pause_requested_at is not None
    return verb is resume and job.status in ("queued", "running") and job.pause_requested_at is None


def _wrong_state(session: Session, job_id: str, verb: str) -> InvalidRequest:
    row = session.execute(
        select(Job.status, Job.cancel_requested_at, Job.pause_requested_at).where(Job.id == job_id)
    ).one()
    state = row.status
    if row.cancel_requested_at is not None and state == "running":
        state = "being cancelled"
    elif row.pause_requested_at is not None:
        state = "being paused"
    return InvalidRequest(f"Job {job_id} is {state} and cannot be {verb}.", code="invalid_job_state")
