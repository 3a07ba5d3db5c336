"""What is known of a file: its shape, its columns, its problems; and findings on which a job is to refuse."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("shape", sa.String(), nullable=True))
    op.add_column("files", sa.Column("columns", postgresql.JSONB(), nullable=True))
    op.add_column("files", sa.Column("problems", postgresql.JSONB(), nullable=True))
    op.add_column("jobs", sa.Column("refuse_on", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "refuse_on")
    op.drop_column("files", "problems")
    op.drop_column("files", "columns")
    op.drop_column("files", "shape")
