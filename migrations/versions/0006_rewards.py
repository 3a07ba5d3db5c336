"""Rewards of preference training: four means of each step, and of each evaluation.

The code before it names its columns, so it goes on working: all new ones may be null.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0003"
branch_labels = None
depends_on = None

# Columns, not one of JSON: the names are few and fixed, and a database can draw and average them as they are.
NAMES = [
    f"{prefix}reward_{name}"
    for prefix in ("", "valid_")
    for name in ("chosen", "rejected", "margin", "accuracy")
]


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for name in NAMES:
        op.add_column("metrics", sa.Column(name, sa.Double(), nullable=True))


def downgrade() -> None:
    for name in reversed(NAMES):
        op.drop_column("metrics", name)
