"""A job's result file, and what attempts measured, for estimates.

The code before it names its columns, so it goes on working: all new ones may be null.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("jobs", sa.Column("result_file", sa.String(), nullable=True))
    # Unchecked for what is there already (all null), so that no table is read under the lock.
    op.execute(
        "ALTER TABLE jobs ADD CONSTRAINT fk_jobs_result_file"
        " FOREIGN KEY (result_file) REFERENCES files (id) NOT VALID"
    )
    op.add_column("jobs", sa.Column("parameters", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("epoch_tokens", sa.BigInteger(), nullable=True))
    op.add_column("attempts", sa.Column("device", sa.String(), nullable=True))
    op.add_column("attempts", sa.Column("device_memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column("attempts", sa.Column("tokens_per_second", sa.Double(), nullable=True))
    op.create_index(
        "ix_attempts_measured",
        "attempts",
        ["started_at"],
        postgresql_where=sa.text("tokens_per_second IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_attempts_measured", table_name="attempts")
    for name in ("device", "device_memory_bytes", "tokens_per_second"):
        op.drop_column("attempts", name)
    for name in ("result_file", "parameters", "epoch_tokens"):
        op.drop_column("jobs", name)
