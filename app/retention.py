"""What is kept of ended jobs, and for how long: settings with a time, pins without one.

Rows are marked or removed first; `app.purge` removes the bytes of what is marked. Killed in between, the next
round goes on. Models and files are never removed by these.
"""

from bisect import bisect_right
from datetime import timedelta
from itertools import accumulate

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from app.lifecycle.claims import ENDED
from app.permissions import CheckpointPermission
from app.tables import Checkpoint, Event, Job, Metric, now

BATCH = 500  # checkpoints or jobs in one transaction
EVENTS = 10_000  # rows in one transaction: well under a second
POINTS = 500  # of a thinned curve: more than a chart has pixels for
THINNED = 1_000_000  # points of whole curves in one transaction: a second


def is_needed() -> ColumnElement[bool]:
    """Whether a checkpoint is to stay whatever its age: pinned, shared with somebody, or trained from."""
    shared = exists().where(CheckpointPermission.model_name == Checkpoint.name)
    other = aliased(Job)
    source = exists().where(other.source == "store:" + Checkpoint.key, other.status.not_in(ENDED))
    return or_(Checkpoint.pinned, shared, source)


def retire_checkpoints(session: Session, age: timedelta) -> int:
    """Mark checkpoints of jobs that ended `age` ago; how many. Of a job without a model the newest and the
    best stay: there is nothing else of it."""
    newer = aliased(Checkpoint)
    is_last = ~exists().where(
        newer.job_id == Checkpoint.job_id, newer.step > Checkpoint.step, newer.deleted_at.is_(None)
    )
    old = (
        select(Checkpoint.id)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(
            Job.finished_at < func.now() - age,
            Checkpoint.deleted_at.is_(None),
            ~is_needed(),
            or_(Job.status == "succeeded", ~or_(Checkpoint.best, is_last)),
        )
        .limit(BATCH)
    )
    # Who makes a job from one of them holds its row until that job is there (app.job_inputs): such a row is
    # left for the next round, and the second look sees the jobs that came meanwhile.
    ids = session.scalars(old.with_for_update(of=Checkpoint, skip_locked=True)).all()
    marked = session.execute(
        update(Checkpoint)
        .where(Checkpoint.id.in_(ids), Checkpoint.deleted_at.is_(None), ~is_needed())
        .values(deleted_at=now)
        .returning(Checkpoint.id)
        .execution_options(synchronize_session=False)
    )
    return len(marked.all())


def forget_events(session: Session, age: timedelta) -> int:
    """Remove events of jobs that ended `age` ago; how many."""
    old = (
        select(Event.id)
        .join(Job, Job.id == Event.job_id)
        .where(Job.finished_at < func.now() - age)
        .limit(EVENTS)
    )
    gone = session.execute(delete(Event).where(Event.id.in_(old)).returning(Event.id))
    return len(gone.all())


def thin_metrics(session: Session, age: timedelta) -> int:
    """Leave of the curves of some jobs that ended `age` ago about 500 points, and every evaluation; how many
    jobs. The result file of a job has all points.
    """
    old = (
        select(Job.id, Job.step)
        .where(Job.finished_at < func.now() - age, Job.metrics_thinned_at.is_(None))
        .order_by(Job.finished_at)
        .limit(BATCH // 10)
        .with_for_update(skip_locked=True)
    )
    found = session.execute(old).all()
    points = list(accumulate(row.step for row in found))
    jobs = found[: max(1, bisect_right(points, THINNED))]
    for job_id, steps in jobs:
        every = max(1, -(-steps // POINTS))
        spared = or_(Metric.step == 1, Metric.step >= steps, Metric.step % every == 0)
        session.execute(
            delete(Metric).where(and_(Metric.job_id == job_id, Metric.valid_loss.is_(None), ~spared))
        )
    session.execute(update(Job).where(Job.id.in_([row.id for row in jobs])).values(metrics_thinned_at=now))
    return len(jobs)
