"""Row-level security: a transaction that names an owner (app/guard.py) has that owner's rows alone.

One that names nobody has all of them, as the code before does. FORCE, since the role of the programs owns the
tables. Each table by itself, in a transaction of its own: whoever waited for one with locks on others could
wait for somebody who waits for these. Killed in between, the next try goes over all of them again.

A child is its parent's, whose own policy decides. CASE, because the planner takes that for half of the rows,
where it would expect one in hundreds of an OR and choose nested loops for workers' queries. `metrics` has no
policy: looking for the job of each of a million rows took 5.9 s instead of 0.8 s (docs/security.md).
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

OWNED = (
    "files",
    "jobs",
    "models",
    "uploads",
    "checkpoint_permissions",
    "webhook_endpoints",
    "api_keys",
    "audit_log",
)
CHILDREN = {
    "attempts": ("job_id", "jobs"),
    "events": ("job_id", "jobs"),
    "checkpoints": ("job_id", "jobs"),
    "upload_parts": ("upload_id", "uploads"),
    "webhook_deliveries": ("endpoint_id", "webhook_endpoints"),
}
# In a subquery of its own it is read once a statement, not once a row.
NAMED = "(SELECT coalesce(current_setting('finetuned.owner', true), ''))"
PARENT_SEEN = "(SELECT true FROM {parent} WHERE {parent}.id = {child})"
GUARD = """
DO $$ BEGIN
  SET LOCAL lock_timeout = '5s';
  DROP POLICY IF EXISTS owners_alone ON {table};
  CREATE POLICY owners_alone ON {table} USING (CASE WHEN {named} = '' THEN true ELSE {rule} END);
  ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
  ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
END $$
"""
UNGUARD = """
DO $$ BEGIN
  SET LOCAL lock_timeout = '5s';
  ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY;
  ALTER TABLE {table} DISABLE ROW LEVEL SECURITY;
  DROP POLICY IF EXISTS owners_alone ON {table};
END $$
"""


def upgrade() -> None:
    rules = dict.fromkeys(OWNED, f"owner = {NAMED}")
    for table, (column, parent) in CHILDREN.items():
        rules[table] = PARENT_SEEN.format(parent=parent, child=f"{table}.{column}")
    with op.get_context().autocommit_block():
        for table, rule in rules.items():
            op.execute(GUARD.format(table=table, named=NAMED, rule=rule))


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for table in (*OWNED, *CHILDREN):
            op.execute(UNGUARD.format(table=table))
