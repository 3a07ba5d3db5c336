"""Which checkpoints of a running job stay: the newest few, the best and those that somebody needs. Bytes go
after the rows are committed."""

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.retention import is_needed
from app.tables import Checkpoint, now


def retire(session: Session, job_id: str, keep: int) -> None:
    """Mark all but the newest `keep`, the best, and those pinned, shared or trained from as deleted.

    `app.purge` removes their bytes.
    """
    newest = (
        select(Checkpoint.id)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .order_by(Checkpoint.step.desc())
        .limit(keep)
    )
    old = (
        Checkpoint.job_id == job_id,
        Checkpoint.deleted_at.is_(None),
        Checkpoint.best.is_(False),
        Checkpoint.id.not_in(newest),
        ~is_needed(),
    )
    # In two steps as app.retention does, and without waiting: what another job is being made from stays.
    ids = session.scalars(select(Checkpoint.id).where(*old).with_for_update(skip_locked=True)).all()
    session.execute(
        update(Checkpoint)
        .where(Checkpoint.id.in_(ids), *old)
        .values(deleted_at=now)
        .execution_options(synchronize_session=False)
    )
