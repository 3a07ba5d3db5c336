"""The few steps of a job that were evaluated are found without reading the many that were not.

Not CONCURRENTLY: that waits for every open snapshot, such as that of a second process which waits for its
turn to migrate. A million rows take a quarter of a second, in which workers wait to write theirs.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index(
        "ix_metrics_evaluated",
        "metrics",
        ["job_id", "step"],
        postgresql_where=sa.text("valid_loss IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_metrics_evaluated", table_name="metrics")
