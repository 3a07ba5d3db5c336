"""What workers offer and which jobs that fits: labels, memory, a free slot.

A job names labels that its worker must have, and may name memory that its device must have. Beside that,
a worker with a budget runs jobs together only while what they are reckoned to take fits into it. A job that
alone takes more goes to a worker that can hold it, and where no living one can, it runs by itself, since what
is reckoned is no more than that; so does one of which nothing is known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, false, func, not_, or_, select, true
from sqlalchemy.orm import Session

from app.tables import Job, Worker, now

MISSED = 3  # heartbeats after which a worker no longer counts


@dataclass(frozen=True)
class Offer:
    """A worker as a job sees it. `memory` is its device's, `budget` what its jobs may take together (bytes;
    None: not known, no limit); `running` jobs take `used` of it."""

    worker: str
    labels: frozenset[str] = frozenset()
    memory: int | None = None
    budget: int | None = None
    slots: int = 1
    running: int = 0
    used: int = 0

    @property
    def is_free(self) -> bool:
        return self.running < self.slots

    def suits(self, labels: Iterable[str], least_memory: int | None) -> bool:
        """Whether it has what such a job insists on."""
        enough = least_memory is None or (self.memory is not None and self.memory >= least_memory)
        return enough and self.labels.issuperset(labels)

    def holds(self, memory: int | None) -> bool:
        """Whether its budget, with nothing else running, has room for so much."""
        return self.budget is None or (memory is not None and memory <= self.budget)

    def has_left(self, memory: int | None) -> bool:
        """Whether what its running jobs leave has room for so much; whoever is alone has room."""
        if self.budget is None or self.running == 0:
            return True
        return memory is not None and self.used + memory <= self.budget


def living(session: Session, fresh: timedelta) -> Sequence[Offer]:
    """The workers heard of within `fresh` that take jobs, with what the rows say that they run."""
    taken = func.coalesce(func.sum(func.coalesce(Job.memory_bytes, Worker.budget_bytes)), 0)
    rows = session.execute(
        select(
            Worker.id,
            Worker.labels,
            Worker.memory_bytes,
            Worker.budget_bytes,
            Worker.slots,
            func.count(Job.id),
            taken,
        )
        .outerjoin(Job, and_(Job.worker == Worker.id, Job.status == "running"))
        .where(Worker.seen_at > now - fresh, Worker.draining.is_(False))
        .group_by(Worker.id)
    )
    return [Offer(row[0], frozenset(row[1]), *row[2:6], int(row[6])) for row in rows]


def with_running(session: Session, offer: Offer) -> Offer:
    """The same worker with what the rows say that it runs."""
    taken = func.coalesce(func.sum(func.coalesce(Job.memory_bytes, offer.budget)), 0)
    mine = select(func.count(), taken).where(Job.worker == offer.worker, Job.status == "running")
    running, used = session.execute(mine).one()
    return replace(offer, running=running, used=int(used))


def suited(offer: Offer) -> ColumnElement[bool]:
    """`Offer.suits`, asked of a row of `jobs`."""
    enough: ColumnElement[bool] = Job.least_memory_bytes.is_(None)
    if offer.memory is not None:
        enough = or_(enough, Job.least_memory_bytes <= offer.memory)
    return and_(enough, Job.labels.contained_by(sorted(offer.labels)))


def held_by(offer: Offer) -> ColumnElement[bool]:
    """`Offer.holds`, asked of a row of `jobs`."""
    return true() if offer.budget is None else Job.memory_bytes <= offer.budget


def left_to(offer: Offer) -> ColumnElement[bool]:
    """`Offer.has_left`, asked of a row of `jobs`."""
    if offer.budget is None or offer.running == 0:
        return true()
    return Job.memory_bytes <= offer.budget - offer.used


def any_of(conditions: Iterable[ColumnElement[bool]]) -> ColumnElement[bool]:
    """Where workers are alike, so are their conditions: each is asked once."""
    alike: dict[Any, ColumnElement[bool]] = {}
    for condition in conditions:
        compiled = condition.compile()
        alike.setdefault((str(compiled), repr(compiled.params)), condition)
    return or_(false(), *alike.values())


def can_have(offer: Offer, others: Iterable[Offer]) -> ColumnElement[bool]:
    """Whether a worker is one for a job, now or once it is idle: it suits, and its budget holds the job or
    nobody's does."""
    elsewhere = any_of(
        and_(suited(other), held_by(other)) for other in others if other.worker != offer.worker
    )
    unheld = not_(func.coalesce(elsewhere, False))
    return and_(suited(offer), or_(func.coalesce(held_by(offer), False), unheld))


def open_to(living: Sequence[Offer]) -> ColumnElement[bool]:
    """Whether a job could begin now, as far as anybody knows: somewhere a slot is free that fits it. Where no
    worker lives there may be one that nobody has heard of yet."""
    if not living:
        return true()
    return any_of(
        and_(can_have(offer, living), func.coalesce(left_to(offer), False))
        for offer in living
        if offer.is_free
    )
