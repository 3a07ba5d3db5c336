"""Which owner may use which model of another's: write with it and train from it, and nothing else.

A project, in OpenAI's word, is an owner here: `project_id` is the owner's name as its API keys carry it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Identity, Index, UniqueConstraint, exists, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.tables import Base, Checkpoint, Job, Model, now


class CheckpointPermission(Base):
    """`project_id` may use the model or checkpoint of that name, which `owner` trained.

    By name, since names are given once and for all: a permission for what is gone means nothing. One that was
    taken back names NOTHING and nobody; its row stays, or whoever deletes what they list lost their place.
    """

    __tablename__ = "checkpoint_permissions"
    id: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(Identity(always=True), unique=True)
    owner: Mapped[str]
    model_name: Mapped[str]
    project_id: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=now)
    __table_args__ = (UniqueConstraint("model_name", "project_id"), Index(None, "project_id"))


NOTHING = ""  # what no model is called


def permitted(name: Any, owner: str) -> ColumnElement[bool]:
    """Whether `owner` may use what another trained under the name that a column holds."""
    return exists().where(CheckpointPermission.model_name == name, CheckpointPermission.project_id == owner)


def is_own(session: Session, name: str, owner: str) -> bool:
    """Whether the name is that of a model or a kept checkpoint which `owner` trained."""
    model = select(Model.id).where(Model.name == name, Model.owner == owner, Model.deleted_at.is_(None))
    saved = (
        select(Checkpoint.id)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Checkpoint.name == name, Job.owner == owner, Checkpoint.deleted_at.is_(None))
    )
    return session.scalar(model) is not None or session.scalar(saved) is not None


def grant(session: Session, owner: str, name: str, ids: dict[str, str]) -> Sequence[CheckpointPermission]:
    """Permit the projects of `ids` ({project: id of a new permission}); who is permitted already stays so.

    In the order of `ids`.
    """
    session.execute(
        insert(CheckpointPermission).on_conflict_do_nothing(),
        [
            {"id": new_id, "owner": owner, "model_name": name, "project_id": project}
            for project, new_id in ids.items()
        ],
    )
    rows = session.scalars(
        select(CheckpointPermission).where(
            CheckpointPermission.model_name == name, CheckpointPermission.project_id.in_(ids)
        )
    ).all()
    order = list(ids)
    return sorted(rows, key=lambda row: order.index(row.project_id))


def take_back(session: Session, owner: str, name: str, permission_id: str) -> bool:
    """Whether there was such a permission."""
    done = session.scalar(
        update(CheckpointPermission)
        .where(
            CheckpointPermission.id == permission_id,
            CheckpointPermission.owner == owner,
            CheckpointPermission.model_name == name,
        )
        # Name and project together are unique.
        .values(model_name=NOTHING, project_id=permission_id)
        .returning(CheckpointPermission.id)
    )
    return done is not None
