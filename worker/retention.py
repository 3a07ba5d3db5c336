"""Which checkpoints of a job stay: the newest few and the best. Bytes go after the rows are committed."""

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from app.lifecycle.claims import ENDED
from app.tables import Checkpoint, Job, now


def retire(session: Session, job_id: str, keep: int) -> None:
    """Mark all but the newest `keep`, the best and those that other jobs train from as deleted.

    `app.purge` removes their bytes.
    """
    needed = exists().where(Job.source == "store:" + Checkpoint.key, Job.status.not_in(ENDED))
    newest = (
        select(Checkpoint.id)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .order_by(Checkpoint.step.desc())
        .limit(keep)
    )
    session.execute(
        update(Checkpoint)
        .where(
            Checkpoint.job_id == job_id,
            Checkpoint.deleted_at.is_(None),
            Checkpoint.best.is_(False),
            Checkpoint.id.not_in(newest),
            ~needed,
        )
        .values(deleted_at=now)
        .execution_options(synchronize_session=False)
    )
