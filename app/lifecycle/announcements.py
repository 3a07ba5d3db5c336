"""Which queued jobs the dispatcher tells the workers of. A message is a knock: the rows decide (`turns`)."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from app.lifecycle import offers
from app.lifecycle.history import note
from app.lifecycle.offers import Offer
from app.lifecycle.room import held_back
from app.tables import Job, now

SMALLEST_WINDOW = 4


def due(session: Session, again: timedelta, fresh: timedelta) -> Sequence[str]:
    """Ids of queued jobs that are not announced, or were so `again` ago and nobody came.

    No more than a few are under way at a time, twice the free slots of workers heard of within `fresh`: Redis
    holds tens of messages and never the backlog. Only those count that one of the free slots fits: what
    waits for another kind of worker, or for room, keeps nobody's knock from being heard.
    """
    if session.scalar(select(Job.id).where(Job.status == "queued").limit(1)) is None:
        return []  # what follows takes a hundred times as long to write down as this to ask
    living = offers.living(session, fresh)
    if living and not any(offer.is_free for offer in living):
        return []
    queued = (Job.status == "queued", Job.not_before <= now, ~held_back(), offers.open_to(living))
    under_way = session.scalar(select(func.count()).where(*queued, Job.dispatched_at >= now - again)) or 0
    free = sum(max(0, offer.slots - offer.running) for offer in living)
    window = max(SMALLEST_WINDOW, 2 * free)
    return session.scalars(
        select(Job.id)
        .where(*queued, or_(Job.dispatched_at.is_(None), Job.dispatched_at < now - again))
        .order_by(Job.priority.desc(), Job.seq)
        .limit(max(0, window - under_way))
    ).all()


def mark_dispatched(session: Session, job_id: str) -> bool:
    """Before publishing: whoever is reached by the message needs the row at once, and may want another one
    sent, which a later mark would undo. After a crash between the two it is sent `again` later. False: nobody
    need be told of the job any more."""
    row = update(Job).where(Job.id == job_id, Job.status == "queued").values(dispatched_at=now)
    return session.scalar(row.returning(Job.id)) is not None


def take_back(session: Session, job_id: str) -> None:
    """The message could not be sent."""
    session.execute(update(Job).where(Job.id == job_id, Job.status == "queued").values(dispatched_at=None))


def waits_unheard(session: Session, patience: timedelta, again: timedelta, offer: Offer) -> bool:
    """Whether a job that this worker could have has been due for `patience` and is still being announced:
    somebody ought to have come."""
    waiting = select(Job.id).where(
        Job.status == "queued",
        Job.not_before < now - patience,
        # Not where announcing itself has stopped: then no worker is to blame.
        Job.dispatched_at > now - 2 * again,
        ~held_back(),
        offers.suited(offer),
    )
    return session.scalar(waiting.limit(1)) is not None


def tell_unserved(session: Session, fresh: timedelta) -> int:
    """Have the history of each job that no living worker suits say so, once until it is claimed; how many."""
    living = offers.living(session, fresh)
    nobody = ~offers.any_of(offers.suited(offer) for offer in living)
    asking = or_(Job.labels != [], Job.least_memory_bytes.is_not(None))
    jobs = session.execute(
        select(Job.id, Job.labels, Job.least_memory_bytes)
        # Workers that are just starting, or starting again, are given the time to be heard of.
        .where(
            Job.status == "queued", Job.unserved_at.is_(None), Job.not_before < now - fresh, asking, nobody
        )
        .limit(100)
        .with_for_update(skip_locked=True)
    ).all()
    for job in jobs:
        note(session, job.id, "warn", "no_worker", _why(job.labels, job.least_memory_bytes, living))
    session.execute(update(Job).where(Job.id.in_([job.id for job in jobs])).values(unserved_at=now))
    return len(jobs)


def _why(labels: Sequence[str], memory: int | None, living: Sequence[Offer]) -> str:
    wanted = [f"the labels {', '.join(labels)}"] if labels else []
    if memory is not None:
        wanted.append(f"{memory:,} bytes of memory")
    told = ([label for label in sorted(o.labels) if not label.startswith("host:")] for o in living)
    there = sorted({", ".join(labels) or "none" for labels in told})
    known = f"Workers that are there have: {'; '.join(there)}." if there else "No worker is there."
    return f"Waiting for a worker with {' and '.join(wanted)}. {known}"
