"""For operators: indexes for /metrics and retention, pins, and where a job's request stands in the logs.

The code before it goes on working: new columns may be null or have a default, and nothing else changes.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INDEXES = (
    ("ix_jobs_waiting", "jobs", "not_before", "status = 'queued'"),
    ("ix_jobs_status", "jobs", "status", None),
    ("ix_jobs_started_at", "jobs", "started_at", None),
    ("ix_jobs_ended", "jobs", "finished_at", "finished_at IS NOT NULL"),
    ("ix_webhook_deliveries_failed", "webhook_deliveries", "ended_at", "status = 'failed'"),
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("jobs", sa.Column("request_id", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("traceparent", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("metrics_thinned_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "checkpoints",
        sa.Column("pinned", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    for name, table, column, where in INDEXES:
        op.create_index(name, table, [column], postgresql_where=sa.text(where) if where else None)


def downgrade() -> None:
    for name, table, _, _ in INDEXES:
        op.drop_index(name, table_name=table)
    op.drop_column("checkpoints", "pinned")
    for name in ("metrics_thinned_at", "traceparent", "request_id"):
        op.drop_column("jobs", name)
