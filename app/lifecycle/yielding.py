"""Urgent jobs for which there is no room: a less urgent one is asked to save, give way and come back.

The running job's row names the one it is to give way to; its worker reads that with its next heartbeat, as
it reads a pause, and gives the job back: queued, at no attempt's cost, to go on where it was when its turn
comes. One running job is asked for one waiting, and none before it has run for a while, so that nobody is
made to spend his time on saving and loading.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import cache

from sqlalchemy import Update, exists, func, select, update
from sqlalchemy.orm import Session, aliased

from app.lifecycle.history import note
from app.lifecycle.offers import Offer, living
from app.lifecycle.room import held_back
from app.priority import HIGH, name
from app.tables import Attempt, Checkpoint, Job, now

# Urgent jobs looked at in one go, by chance: twenty for which nobody can give way would else be looked at
# every time, and nobody behind them. A key that may make them is not for everybody.
AT_ONCE = 20


def make_room(session: Session, least_run: timedelta, again: timedelta, fresh: timedelta) -> Sequence[str]:
    """Ask as many running jobs to give way as urgent ones wait for which no slot is free; the ids of those
    asked. For the same waiting job nobody else is asked within `again`, and not while somebody is asked."""
    other = aliased(Job)
    waiting = session.execute(
        select(Job.id, Job.priority, Job.seq, Job.labels, Job.least_memory_bytes, Job.memory_bytes)
        .where(
            Job.status == "queued",
            Job.priority >= HIGH,
            Job.not_before <= now,
            ~held_back(),
            Job.made_room_at.is_(None) | (Job.made_room_at < now - again),
            ~exists().where(other.yield_to == Job.id, other.status == "running"),
        )
        .order_by(func.random())
        .limit(AT_ONCE)
        .with_for_update(skip_locked=True)  # of two processes that look, one asks
    ).all()
    offers = living(session, fresh) if waiting else ()
    free = {offer.worker: offer.slots - offer.running for offer in offers}
    asked = []
    for job in sorted(waiting, key=lambda job: (-job.priority, job.seq)):
        suiting = [offer for offer in offers if offer.suits(job.labels, job.least_memory_bytes)]
        fitting = [offer for offer in suiting if offer.holds(job.memory_bytes)] or suiting
        open_ = [o for o in fitting if free[o.worker] > 0 and o.has_left(job.memory_bytes)]
        if open_:
            free[open_[0].worker] -= 1  # that one is its own; the next urgent job needs another
            continue
        victim = _victim(session, job.priority, job.memory_bytes, fitting, least_run)
        if victim is not None and ask(session, victim, job.id, job.priority):
            session.execute(update(Job).where(Job.id == job.id).values(made_room_at=now))
            asked.append(victim)
    return asked


def _victim(
    session: Session, priority: int, memory: int | None, offers: Sequence[Offer], least_run: timedelta
) -> str | None:
    """The running job whose place would do and that loses least: the least urgent, and of equals the one
    whose checkpoint is newest, and then the one that has run for the shortest time."""
    saved = select(func.max(Checkpoint.created_at)).where(Checkpoint.job_id == Job.id).scalar_subquery()
    running = session.execute(
        select(Job.id, Job.worker, Job.memory_bytes)
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.epoch == Job.epoch))
        .where(
            Job.status == "running",
            Job.priority < priority,
            Job.yield_to.is_(None),
            Job.cancel_requested_at.is_(None),
            Job.pause_requested_at.is_(None),
            Job.worker.in_([offer.worker for offer in offers]),
            Attempt.started_at < now - least_run,
        )
        .order_by(Job.priority, saved.desc().nulls_last(), Attempt.started_at.desc())
    )
    by_id = {offer.worker: offer for offer in offers}
    for row in running:
        offer = by_id[row.worker]
        if offer.budget is None or offer.running == 1:
            return str(row.id)
        freed = offer.used - (offer.budget if row.memory_bytes is None else row.memory_bytes)
        if memory is not None and freed + memory <= offer.budget:
            return str(row.id)
    return None


def ask(session: Session, job_id: str, for_job: str, priority: int) -> bool:
    """Whether a running job could be asked: not where it has ended, or is to end or pause anyway; nor while
    its worker writes to its row, for up to a second, since nobody could claim the urgent one meanwhile."""
    free = (
        select(Job.id)
        .where(
            Job.id == job_id,
            Job.status == "running",
            Job.yield_to.is_(None),
            Job.cancel_requested_at.is_(None),
            Job.pause_requested_at.is_(None),
        )
        .with_for_update(skip_locked=True)
    )
    done = session.scalar(update(Job).where(Job.id.in_(free)).values(yield_to=for_job).returning(Job.id))
    if done is not None:
        # Nothing about the other job: it may be somebody else's.
        message = f"A job of priority {name(priority)} needs the place: the worker saves and gives way."
        note(session, job_id, "info", "preempt_requested", message)
    return done is not None


def withdraw(session: Session) -> None:
    """Running jobs whose place nobody needs any more may stay, if their worker has not read the wish yet."""
    session.execute(_withdraw())


@cache  # asked every second
def _withdraw() -> Update:
    waiting = aliased(Job)
    still = exists().where(waiting.id == Job.yield_to, waiting.status == "queued")
    return update(Job).where(Job.status == "running", Job.yield_to.is_not(None), ~still).values(yield_to=None)
