"""Download tickets, and which devices a worker has.

The code before it writes workers without devices and makes no tickets: the column may be null.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("devices", postgresql.JSONB(), nullable=True))
    # Unlogged: what lives a minute need not survive a crash.
    op.create_table(
        "download_tickets",
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("secret_sha256", name=op.f("pk_download_tickets")),
        prefixes=["UNLOGGED"],
    )
    op.create_index(op.f("ix_download_tickets_expires_at"), "download_tickets", ["expires_at"])


def downgrade() -> None:
    op.drop_table("download_tickets")
    op.drop_column("workers", "devices")
