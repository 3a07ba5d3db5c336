"""Whose turn it is: the one order of service, and the claim of the first job in it that fits.

    priority     high, normal, low
    fair share   the owner with the fewest running jobs, and of equals the one who has had workers for the
                 least time lately: one job of mine begins before the second of your ten thousand
    age          first come, first served

A message to a worker is a knock without authority: whichever job it names, the worker claims the first in
this order that it can have. What is urgent is therefore never behind anything, whenever it came, and nothing
in the queue of the broker has to be put in order.
"""

import time
from collections.abc import Iterable, Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, Row, Subquery, func, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session, aliased

from app.lifecycle import offers
from app.lifecycle.claims import Claim, claim
from app.lifecycle.offers import Offer
from app.lifecycle.room import held_back
from app.tables import Attempt, Job, now

LATELY = timedelta(hours=24)
LOOKS, LOOK_EVERY = 50, 0.02  # seconds


def shares() -> Subquery:
    """What each owner has had lately: jobs that run now, and seconds of workers' time."""
    job = aliased(Job)
    # The transaction's time: a clock that moves while the statement runs would make no use of an index.
    since = func.now() - LATELY
    spent = func.coalesce(Attempt.ended_at, func.now()) - func.greatest(Attempt.started_at, since)
    return (
        select(
            job.owner,
            func.count().filter(Attempt.ended_at.is_(None)).label("running"),
            func.sum(func.extract("epoch", spent)).label("seconds"),
        )
        .join(job, job.id == Attempt.job_id)
        .where(Attempt.ended_at.is_(None) | (Attempt.ended_at > since))
        .group_by(job.owner)
        .subquery()
    )


def queued(session: Session) -> list[str]:
    """Ids of all queued jobs in the order of service as things stand: owners take turns, those who have more
    running later. The first one is the next to be claimed, where it fits."""
    share = shares()
    nth = func.row_number().over(partition_by=(Job.priority, Job.owner), order_by=Job.seq)
    running, seconds = func.coalesce(share.c.running, 0), func.coalesce(share.c.seconds, 0)
    waiting = (
        select(Job.id, Job.priority, Job.seq, (running + nth).label("turn"), seconds.label("seconds"))
        .outerjoin(share, share.c.owner == Job.owner)
        .where(Job.status == "queued")
        .subquery()
    )
    row = waiting.c
    # One row: ten thousand would each pass through the driver and the ORM, while nobody else is answered.
    in_turn = aggregate_order_by(row.id, row.priority.desc(), row.turn, row.seconds, row.seq)
    return session.scalar(select(func.array_agg(in_turn))) or []


def claim_next(
    session: Session, offer: Offer, lease: timedelta, living: Iterable[Offer] = ()
) -> Claim | None:
    """The first job in the order of service that this worker can have, of all workers that are `living`.

    With a budget that the first one's memory does not fit in beside what runs, nothing is claimed: the slot
    waits until there is room, or large jobs would wait for ever behind small ones that came later.
    """
    due = Job.status == "queued", Job.not_before <= now, ~held_back(), offers.can_have(offer, living)
    while (row := _first_free(session, due)) is not None:
        if not offer.has_left(row.memory_bytes):
            return None
        if held := claim(session, row.id, offer.worker, lease):
            return held
        # Its key's last place went to another claim in this moment: the next look sees that.
    return None


def _first_free(session: Session, due: Sequence[ColumnElement[bool]]) -> Row[str, int | None, int] | None:
    """The first in the order of service whose row nobody holds: two workers never wait for the same one.

    A more urgent one that is held is not passed over, and neither is the only one: another worker claims it
    and it is gone, or the dispatcher writes to its row, which takes milliseconds. Who passed it over would
    give the place that a job has left for it back to that job, or go home after its knock. Looking again, and
    not waiting for the lock, keeps anybody from waiting in a circle, and from waiting for one that is frozen.
    Between two looks nothing is held: who cancels or announces the job that was seen does not wait.
    """
    share = shares()
    first = (
        select(Job.id, Job.memory_bytes, Job.priority)
        .outerjoin(share, share.c.owner == Job.owner)
        .where(*due)
        .order_by(
            Job.priority.desc(),
            func.coalesce(share.c.running, 0),
            func.coalesce(share.c.seconds, 0),
            Job.seq,
        )
        .limit(1)
        .with_for_update(of=Job, skip_locked=True)
    )
    for left in reversed(range(LOOKS)):
        with session.begin_nested() as look:
            row = session.execute(first).one_or_none()
            above = () if row is None else (Job.priority > row.priority,)
            if left == 0 or session.scalar(select(Job.id).where(*due, *above).limit(1)) is None:
                break
            look.rollback()
        time.sleep(LOOK_EVERY)
    return row


def answer_knock(
    session: Session, job_id: str, offer: Offer, lease: timedelta, fresh: timedelta
) -> Claim | None:
    """What a worker claims whom a message about a job reached. A worker with a budget makes one claim at a
    time: this counts what its committed claims take."""
    living: Sequence[Offer] = ()
    if offer.budget is not None:
        living, offer = offers.living(session, fresh), offers.with_running(session, offer)
    held = claim_next(session, offer, lease, living)
    if held is None:
        # Where it has been heard of and waits for room, announcing it again would not help.
        _knock_again(session, Job.id == job_id, ~offers.suited(offer))
    elif held.job_id != job_id:
        _knock_again(session, Job.id == job_id)
    return held


def knock_again(session: Session, most: int) -> None:
    """A worker of several slots has room again, perhaps for more than the one job it claims next: have the
    first few announced anew, without waiting until that is due."""
    announced = select(Job.id).where(Job.status == "queued", Job.dispatched_at.is_not(None))
    first = session.scalars(announced.order_by(Job.priority.desc(), Job.seq).limit(most)).all()
    _knock_again(session, Job.id.in_(first))


def _knock_again(session: Session, *conditions: ColumnElement[bool]) -> None:
    """Others have used up the knock for these jobs: they are announced again at once. Those that somebody has
    locked are left out, for two who waited for each other's would wait for ever."""
    free = select(Job.id).where(*conditions, Job.status == "queued").with_for_update(skip_locked=True)
    session.execute(update(Job).where(Job.id.in_(free)).values(dispatched_at=None))
