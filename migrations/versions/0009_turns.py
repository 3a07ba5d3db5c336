"""Whose turn it is: what a job asks of a worker, what workers offer, who gives way to whom.

The code before it names its columns, so it goes on working: new ones have a default or may be null.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

NO_LABELS = sa.text("'{}'")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("jobs", sa.Column("labels", ARRAY(sa.String()), nullable=False, server_default=NO_LABELS))
    op.add_column("jobs", sa.Column("least_memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("unserved_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("made_room_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("yield_to", sa.Text(), nullable=True))
    op.add_column(
        "workers", sa.Column("labels", ARRAY(sa.String()), nullable=False, server_default=NO_LABELS)
    )
    op.add_column("workers", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column("workers", sa.Column("budget_bytes", sa.BigInteger(), nullable=True))
    # What owners have had lately is added up at every claim.
    op.create_index("ix_attempts_ended_at", "attempts", ["ended_at"])


def downgrade() -> None:
    op.drop_index("ix_attempts_ended_at", "attempts")
    for name in ("budget_bytes", "memory_bytes", "labels"):
        op.drop_column("workers", name)
    for name in ("yield_to", "made_room_at", "unserved_at", "memory_bytes", "least_memory_bytes", "labels"):
        op.drop_column("jobs", name)
