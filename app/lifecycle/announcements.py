"""Which queued jobs the dispatcher tells the workers of. A message is a knock: the row decides."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from app.lifecycle.room import held_back
from app.tables import Job, Worker, now

SMALLEST_WINDOW = 4


def due(session: Session, again: timedelta, fresh: timedelta) -> Sequence[str]:
    """Ids of queued jobs that are not announced, or were so `again` ago and nobody came; first come first.

    No more than a few are under way at a time, twice the free slots of workers heard of within `fresh`: Redis
    holds tens of messages and never the backlog, so priorities and cancels act at once.
    """
    queued = (Job.status == "queued", Job.not_before <= now, ~held_back())
    under_way = session.scalar(select(func.count()).where(*queued, Job.dispatched_at >= now - again)) or 0
    free = session.scalar(
        select(func.sum(Worker.slots - Worker.busy)).where(
            Worker.seen_at > now - fresh, Worker.draining.is_(False)
        )
    )
    window = max(SMALLEST_WINDOW, 2 * int(free or 0))
    return session.scalars(
        select(Job.id)
        .where(*queued, or_(Job.dispatched_at.is_(None), Job.dispatched_at < now - again))
        .order_by(Job.priority.desc(), Job.seq)
        .limit(max(0, window - under_way))
    ).all()


def mark_dispatched(session: Session, job_id: str) -> None:
    """After publishing: a crash between the two only means a second, harmless message."""
    session.execute(update(Job).where(Job.id == job_id, Job.status == "queued").values(dispatched_at=now))


def waits_unheard(session: Session, patience: timedelta, again: timedelta) -> bool:
    """Whether a job has been due for `patience` and is still being announced: somebody ought to have come."""
    waiting = select(Job.id).where(
        Job.status == "queued",
        Job.not_before < now - patience,
        # Not where announcing itself has stopped: then no worker is to blame.
        Job.dispatched_at > now - 2 * again,
        ~held_back(),
    )
    return session.scalar(waiting.limit(1)) is not None
