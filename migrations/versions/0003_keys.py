"""Scopes and limits of API keys, the audit log, uploads in parts."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0005"
branch_labels = None
depends_on = None

# What the keys that exist may do: there was one kind only, which might do anything.
ALL = ["files:write", "jobs:write", "models:write", "generate", "webhooks:write", "admin:write"]

KEEP_AUDIT_LOG = """
CREATE FUNCTION keep_audit_log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the audit log is only ever added to' USING ERRCODE = 'check_violation';
END $$
"""


def _created(name: str = "created_at") -> sa.Column[sa.DateTime]:
    now = sa.text("clock_timestamp()")
    return sa.Column(name, sa.DateTime(timezone=True), server_default=now, nullable=False)


def _seq() -> sa.Column[sa.BigInteger]:
    return sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False)


def upgrade() -> None:
    _extend_keys()
    _add_audit_log()
    _add_uploads()


def _extend_keys() -> None:
    # The default is for rows that the previous release still writes; `finetuned prepare` mends the first key.
    scopes = sa.Column("scopes", postgresql.ARRAY(sa.String()), server_default="{}", nullable=False)
    op.add_column("api_keys", scopes)
    op.execute(sa.text("UPDATE api_keys SET scopes = :all").bindparams(all=ALL))
    op.add_column("api_keys", _seq())
    op.create_unique_constraint(op.f("uq_api_keys_seq"), "api_keys", ["seq"])
    for limit in ("requests_per_minute", "running_jobs", "storage_bytes"):
        op.add_column("api_keys", sa.Column(limit, sa.BigInteger(), nullable=True))
    op.create_check_constraint(
        op.f("ck_api_keys_limits"),
        "api_keys",
        "requests_per_minute > 0 AND running_jobs > 0 AND storage_bytes > 0",
    )
    op.add_column("files", sa.Column("key_id", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("key_id", sa.String(), nullable=True))
    there = sa.text("key IS NOT NULL")
    op.create_index(op.f("ix_files_key_id"), "files", ["key_id"], postgresql_where=there)
    op.create_index(op.f("ix_jobs_key_id"), "jobs", ["key_id"])
    running = sa.text("status = 'running'")
    op.create_index("ix_jobs_running", "jobs", ["key_id"], postgresql_where=running)
    op.create_table(
        "request_budgets",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("remaining", sa.Double(), nullable=False),
        _created("at"),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_request_budgets")),
        prefixes=["UNLOGGED"],
    )


def _add_audit_log() -> None:
    names = ("key_id", "owner", "action", "target", "request_id")
    op.create_table(
        "audit_log",
        sa.Column("id", sa.String(), nullable=False),
        _seq(),
        _created(),
        *(sa.Column(name, sa.String(), nullable=False) for name in names),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
        sa.UniqueConstraint("seq", name=op.f("uq_audit_log_seq")),
    )
    op.create_index(op.f("ix_audit_log_owner_seq"), "audit_log", ["owner", "seq"])
    op.execute(KEEP_AUDIT_LOG)
    op.execute(
        "CREATE TRIGGER keep_rows BEFORE UPDATE OR DELETE ON audit_log"
        " FOR EACH ROW EXECUTE FUNCTION keep_audit_log()"
    )
    op.execute(
        "CREATE TRIGGER keep_all BEFORE TRUNCATE ON audit_log"
        " FOR EACH STATEMENT EXECUTE FUNCTION keep_audit_log()"
    )


def _add_uploads() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(), nullable=False),
        _seq(),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=True),
        sa.Column("key", sa.String(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("filename", "mime_type", "purpose")),
        sa.Column("file_expires_seconds", sa.BigInteger(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("request_sha256", sa.String(), nullable=True),
        sa.Column("file_id", sa.String(), nullable=True),
        _created(),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('pending','completed','cancelled','expired')", name=op.f("ck_uploads_status")
        ),
        sa.CheckConstraint(
            "(status = 'completed') = (file_id IS NOT NULL)", name=op.f("ck_uploads_completed_has_file")
        ),
        sa.CheckConstraint(
            "(status = 'pending') = (deleted_at IS NULL)", name=op.f("ck_uploads_ended_has_time")
        ),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name=op.f("fk_uploads_file_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
        sa.UniqueConstraint("seq", name=op.f("uq_uploads_seq")),
    )
    # Both the sweep of what has expired and the count of a key's reserved bytes look only at these.
    pending = sa.text("status = 'pending'")
    op.create_index(op.f("ix_uploads_key_id"), "uploads", ["key_id"], postgresql_where=pending)
    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        _created(),
        sa.ForeignKeyConstraint(
            ["upload_id"], ["uploads.id"], name=op.f("fk_upload_parts_upload_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload_parts")),
    )
    op.create_index(op.f("ix_upload_parts_upload_id"), "upload_parts", ["upload_id"])


def downgrade() -> None:
    for table in ("upload_parts", "uploads", "audit_log", "request_budgets"):
        op.drop_table(table)
    op.execute("DROP FUNCTION keep_audit_log()")
    op.drop_column("jobs", "key_id")
    op.drop_column("files", "key_id")
    for column in ("storage_bytes", "running_jobs", "requests_per_minute", "seq", "scopes"):
        op.drop_column("api_keys", column)
