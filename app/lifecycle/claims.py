"""What state a job is in; the verbs of workers, of the sweep and of the dispatcher. Users' verbs: `wishes`.

Nothing outside this folder changes `Job.status`.

    validating_files ──► queued ◄───────────── resume ──────────────┐
                          │  ▲                                      │
                    claim │  │ release · retry · reap               │
                          ▼  │                                      │
                        running ──── pause wish ──────────────► paused ◄── pause (of a queued job)
                          │
                          ├── finish ──► succeeded
                          ├── finish · out of attempts ──► failed
                          └── cancel wish ──► cancelled ◄── cancel (of a queued or paused job)

A verb is one conditional UPDATE: it answers None (or raises InvalidRequest, where a user asked) when the row
was not in a state that allows it. `epoch` grows with each claim and each reap; a worker writes only under the
epoch it claimed, so one that was given up for dead finds every door shut.
Wishes (`cancel_requested_at`, `pause_requested_at`) stand beside the status: "cancelling" is never a state in
which a job could be stuck. Each verb leaves an event in the same transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, literal, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.lifecycle import endings
from app.lifecycle.history import note
from app.lifecycle.room import has_room
from app.tables import Attempt, Job, JsonObject, now

ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Claim:
    """The right to work on a job, for as long as `epoch` is the row's."""

    job_id: str
    epoch: int
    attempt: int
    worker: str


@dataclass(frozen=True)
class Wishes:
    """What the user wants of a running job; `give_way`: a more urgent one waits for its place."""

    cancel: bool
    pause: bool
    give_way: bool = False


@dataclass(frozen=True)
class JobError:
    """Why a job failed, as the user reads it."""

    code: str
    message: str
    param: str | None = None


def claim(session: Session, job_id: str, worker: str, lease: timedelta) -> Claim | None:
    """queued → running, once. None: somebody has it, or it is no longer (or not yet) wanted."""
    if not has_room(session, job_id):
        # Told again as soon as one of the others has ended, instead of when the announcement is old.
        session.execute(
            update(Job).where(Job.id == job_id, Job.status == "queued").values(dispatched_at=None)
        )
        return None
    row = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.status == "queued", Job.not_before <= now)
        .values(
            status="running",
            phase="preparing",
            attempt=Job.attempt + 1,
            epoch=Job.epoch + 1,
            worker=worker,
            lease_expires_at=now + lease,
            started_at=func.coalesce(Job.started_at, now),
            unserved_at=None,
            made_room_at=None,
            yield_to=None,
        )
        .returning(Job.epoch, Job.attempt)
    ).one_or_none()
    if row is None:
        return None
    session.execute(insert(Attempt).values(job_id=job_id, epoch=row.epoch, worker=worker))
    note(
        session,
        job_id,
        "info",
        "claimed",
        f"Attempt {row.attempt} started on worker {worker}.",
        {"epoch": row.epoch, "attempt": row.attempt, "worker": worker},
    )
    return Claim(job_id, row.epoch, row.attempt, worker)


def _held(held: Claim) -> ColumnElement[bool]:
    return and_(Job.id == held.job_id, Job.status == "running", Job.epoch == held.epoch)


def beat(session: Session, held: Claim, lease: timedelta, values: JsonObject) -> Wishes | None:
    """Prove life and write progress; takes the row's lock, so what follows in this transaction is fenced too.

    None: the claim is lost, stop at once and write nothing.
    """
    row = session.execute(
        update(Job)
        .where(_held(held))
        .values(lease_expires_at=now + lease, **values)
        .returning(Job.cancel_requested_at, Job.pause_requested_at, Job.yield_to)
    ).one_or_none()
    return None if row is None else Wishes(*(wish is not None for wish in row))


def progressed(session: Session, held: Claim) -> None:
    """A checkpoint further than any before: from here on attempts count anew. A job of days may outlive more
    crashes than `max_attempts`; one that crashes in the same place may not."""
    session.execute(update(Job).where(_held(held)).values(attempt=1))


def _end_attempt(session: Session, held: Claim, exit_code: int | None, reason: str) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == held.job_id, Attempt.epoch == held.epoch, Attempt.ended_at.is_(None))
        .values(ended_at=now, exit_code=exit_code, reason=reason)
    )


_LEFT: JsonObject = dict.fromkeys(("worker", "lease_expires_at", "phase", "estimated_finish", "yield_to"))
PREEMPTED = "preempted"


def succeed(session: Session, held: Claim, fine_tuned_model: str, trained_tokens: int) -> bool:
    """running → succeeded. False: the claim was lost. What commits first wins: a pending cancel is late."""
    done = session.scalar(
        update(Job)
        .where(_held(held))
        .values(
            status="succeeded",
            finished_at=now,
            fine_tuned_model=fine_tuned_model,
            trained_tokens=trained_tokens,
            pause_requested_at=None,
            **_LEFT,
        )
        .returning(Job.id)
    )
    if done is not None:
        _end_attempt(session, held, 0, "finished")
        note(session, held.job_id, "info", "succeeded", f"The model {fine_tuned_model} is ready.")
        endings.tell(session, held.job_id, "succeeded")
    return done is not None


def fail(session: Session, held: Claim, error: JobError, exit_code: int | None = None) -> bool:
    """running → failed, for what trying again cannot mend; → cancelled where that was wished meanwhile."""
    return _leave(session, held, error, exit_code, refund=0, again=False, delay=timedelta(0)) is not None


def release(
    session: Session,
    held: Claim,
    reason: str,
    exit_code: int | None = None,
    delay: timedelta = timedelta(0),
) -> str | None:
    """Give a job back unharmed (drain, pause, cancel, giving way): costs no attempt. The new status, None if
    lost."""
    error = JobError(reason, f"It was stopped ({reason}).")
    return _leave(session, held, error, exit_code, refund=1, again=True, delay=delay)


def retry(
    session: Session, held: Claim, error: JobError, delay: timedelta, exit_code: int | None = None
) -> str | None:
    """Give a job back after a crash: queued again after `delay`, or failed when its attempts are used up."""
    return _leave(session, held, error, exit_code, refund=0, again=True, delay=delay)


def _next_status(used_up: ColumnElement[bool]) -> ColumnElement[Any]:
    return case(
        (Job.cancel_requested_at.is_not(None), literal("cancelled")),
        (used_up, literal("failed")),
        (Job.pause_requested_at.is_not(None), literal("paused")),
        else_=literal("queued"),
    )


def _leave(
    session: Session,
    held: Claim,
    error: JobError,
    exit_code: int | None,
    *,
    refund: int,
    again: bool,
    delay: timedelta,
) -> str | None:
    used_up = (Job.attempt - refund >= Job.max_attempts) if again else literal(True)
    after = _next_status(used_up)
    status: str | None = session.scalar(
        update(Job)
        .where(_held(held))
        .values(
            status=after,
            attempt=Job.attempt - refund,
            not_before=now + delay,
            dispatched_at=None,
            finished_at=case((after.in_(ENDED), now)),
            error_code=case((after == "failed", error.code)),
            error_message=case((after == "failed", error.message)),
            error_param=case((after == "failed", error.param)),
            cancel_requested_at=case((after == "cancelled", Job.cancel_requested_at)),
            pause_requested_at=None,
            **_LEFT,
        )
        .returning(Job.status)
    )
    if status is None:
        return None
    _end_attempt(session, held, exit_code, error.code)
    _tell_left(session, held, status, error, delay)
    return status


def _tell_left(session: Session, held: Claim, status: str, error: JobError, delay: timedelta) -> None:
    if status in ENDED:
        endings.tell(session, held.job_id, status)
    if status == "failed":
        note(session, held.job_id, "error", error.code, error.message)
    elif status == "cancelled":
        note(session, held.job_id, "info", "cancelled", "Cancelled; the last checkpoint is kept.")
    elif status == "paused":
        note(session, held.job_id, "info", "paused", "Paused; resume goes on from the last checkpoint.")
    elif delay:
        seconds = round(delay.total_seconds())
        message = f"Attempt {held.attempt} ended: {error.message} Trying again in {seconds} s."
        note(session, held.job_id, "warn", error.code, message)
    elif error.code == PREEMPTED:
        message = "Gave way to a more urgent job; it goes on from the last checkpoint when its turn comes."
        note(session, held.job_id, "info", PREEMPTED, message)
    else:
        message = "The worker gave the job back; it goes on from the last checkpoint."
        note(session, held.job_id, "info", error.code, message)


def reap(session: Session, grace: timedelta) -> Sequence[str]:
    """Take away claims whose lease ran out `grace` ago; any number of reapers may try. Their job ids."""
    used_up = Job.attempt >= Job.max_attempts
    after = _next_status(used_up)
    lost = select(Job.id, Job.epoch, Job.worker, Job.attempt).where(
        Job.status == "running", Job.lease_expires_at < now - grace
    )
    dead = session.execute(lost.with_for_update(skip_locked=True)).all()
    for row in dead:
        error = JobError("worker_lost", f"Worker {row.worker} was not heard of for longer than its lease.")
        status = session.scalars(
            update(Job)
            .where(Job.id == row.id)
            .values(
                status=after,
                epoch=Job.epoch + 1,
                dispatched_at=None,
                finished_at=case((after.in_(ENDED), now)),
                error_code=case((after == "failed", error.code)),
                error_message=case((after == "failed", error.message)),
                cancel_requested_at=case((after == "cancelled", Job.cancel_requested_at)),
                pause_requested_at=None,
                **_LEFT,
            )
            .returning(Job.status)
        ).one()
        held = Claim(row.id, row.epoch, row.attempt, row.worker)
        _end_attempt(session, held, None, error.code)
        if status == "queued":
            note(session, row.id, "warn", error.code, f"{error.message} The job goes to another worker.")
        else:
            _tell_left(session, held, status, error, timedelta(0))
    return [row.id for row in dead]
