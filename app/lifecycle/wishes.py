"""What users ask of a job: create, cancel, pause, resume. `claims` draws the states."""

from sqlalchemy import case, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.database import WAKE
from app.errors import InvalidRequest
from app.lifecycle.claims import ENDED
from app.lifecycle.history import note
from app.tables import Job, JsonObject, now


def create(session: Session, values: JsonObject) -> Job:
    """The new job; or, where the owner used this idempotency key before, the job it made then.

    Raises InvalidRequest (idempotency_conflict) when that was another request.
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
    before: Job = session.scalars(
        select(Job).where(Job.owner == values["owner"], Job.idempotency_key == values["idempotency_key"])
    ).one()
    if before.request_sha256 != values["request_sha256"]:
        raise InvalidRequest(
            "This Idempotency-Key was used for another request; use a new key for a new job.",
            param="Idempotency-Key",
            code="idempotency_conflict",
        )
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
