"""A release is put over the one before while a job runs: what the old code does goes on working.

The old code is given by what it sends to the database: its statements name their columns, so it works for
as long as nothing is taken away and whatever is new may be left out. A lint over the migrations sees to
that, and a job that was begun under the schema before goes on under the new one.
"""

import ast
import threading
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.schema import CreateTable

from app import database as databases
from app.database import WorkerDatabase, migrate, revisions
from app.lifecycle import claims
from app.settings import Settings
from app.tables import Base
from tests.stand_ins.reporter import Reporter

ROOT = Path(__file__).parents[2]
VERSIONS = sorted((ROOT / "migrations/versions").glob("*.py"))
# 0001 makes the first tables; 0003 was written before the first release, when there was no code before it.
YOUNG = {"0001", "0002", "0003"}
TAKES_AWAY = {"drop_column", "drop_table", "rename_table", "alter_column", "drop_constraint"}

OLD_FILE = """INSERT INTO files (id, owner, key, bytes, sha256, filename, purpose, format, status, rows)
VALUES ('file-1', 'me', 'files/file-1', 2, 'x', 'a.jsonl', 'fine-tune', 'jsonl', 'processed', 1)"""
OLD_JOB = """INSERT INTO jobs (id, owner, request_sha256, model, source, training_file, seed, method,
hyperparameters, recipe, max_attempts) VALUES (%s, 'me', 'x', 'tiny-gpt2', 'builtin:tiny-gpt2', 'file-1', 1,
'{"type": "supervised"}', '{}', '{}', 3)"""
OLD_CLAIM = """UPDATE jobs SET status = 'running', phase = 'preparing', attempt = attempt + 1,
epoch = epoch + 1, worker = 'old', lease_expires_at = clock_timestamp() + interval '1 hour',
started_at = clock_timestamp() WHERE id = %s"""
OLD_ATTEMPT = "INSERT INTO attempts (job_id, epoch, worker) VALUES (%s, 1, 'old')"
OLD_BEAT = """UPDATE jobs SET lease_expires_at = clock_timestamp() + interval '1 hour', step = 7
WHERE id = %s AND status = 'running' AND epoch = 1 RETURNING cancel_requested_at, pause_requested_at"""
OLD_CHECKPOINT = """INSERT INTO checkpoints (id, job_id, step, epoch, key, name, manifest_sha256, bytes,
metrics) VALUES ('ftckpt_1', %s, 7, 1, 'jobs/1', 'name', 'x', 1, '{}')"""
OLD_METRIC = "INSERT INTO metrics (job_id, step, epoch, loss) VALUES (%s, 8, 1, 2.5)"
OLD_EVENT = "INSERT INTO events (id, job_id, level, code, message) VALUES ('e1', %s, 'info', 'step', 'x')"
OLD_WORKER = "INSERT INTO workers (id, host, slots, busy, version) VALUES ('old', 'h', 1, 1, '0')"
OLD_WORK = (OLD_BEAT, OLD_CHECKPOINT, OLD_METRIC, OLD_EVENT)
RUNNING, WAITING = "ftjob-00000001", "ftjob-00000002"


@pytest.fixture
def settings(empty_database_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=empty_database_url, redis_url="redis://x", min_free_bytes=0)


def plain(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value().replace("+psycopg", "")


@pytest.mark.parametrize("back", [1, 2, 3])
def test_a_job_of_the_release_before_runs_on_while_and_after_the_schema_changes(
    settings: Settings, back: int
) -> None:
    migrate(settings, revisions()[back])
    with psycopg.connect(plain(settings), autocommit=True) as old:
        old.execute(OLD_FILE)
        for job in (RUNNING, WAITING):
            old.execute(OLD_JOB, [job])
        old.execute(OLD_CLAIM, [RUNNING])
        old.execute(OLD_ATTEMPT, [RUNNING])
        beats, stop = [0], threading.Event()

        def beat() -> None:
            with psycopg.connect(plain(settings), autocommit=True) as worker:
                while not stop.is_set():
                    beats[0] += len(worker.execute(OLD_BEAT, [RUNNING]).fetchall())

        trainer = threading.Thread(target=beat)
        trainer.start()
        try:
            while not (before := beats[0]):
                trainer.join(0.01)
            migrate(settings)  # the new code's first act
            during = beats[0] - before
        finally:
            stop.set()
            trainer.join()
        assert during > 0, "and beat meanwhile"
        old.execute(OLD_WORKER)
        for statement in OLD_WORK:  # by the old worker, which holds the lease still
            old.execute(statement, [RUNNING])
    new = WorkerDatabase(settings)
    with new.transaction() as session:
        wishes = claims.beat(session, claims.Claim(RUNNING, 1, 1, "old"), timedelta(0), {})
        assert wishes == claims.Wishes(cancel=False, pause=False)
    with new.transaction() as session:
        assert list(claims.reap(session, timedelta(0))) == [RUNNING], "the old worker was stopped"
    successor = Reporter(settings, new, RUNNING)
    successor.steps(8, 9)
    successor.save(9)
    successor.succeed()
    with new.transaction() as session:
        rows = session.execute(text("SELECT id, status FROM jobs ORDER BY id"))
        assert [tuple(row) for row in rows] == [(RUNNING, "succeeded"), (WAITING, "queued")]
        steps = session.scalars(text("SELECT step FROM checkpoints ORDER BY step")).all()
        assert list(steps) == [7, 9]
    new.close()


def test_starters_at_the_same_moment_wait_for_one_another(settings: Settings) -> None:
    failed: list[BaseException] = []

    def start() -> None:
        try:
            migrate(settings)
        except BaseException as error:
            failed.append(error)

    starters = [threading.Thread(target=start) for _ in range(4)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert failed == []
    with psycopg.connect(plain(settings)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(revisions()[0],)]


def test_who_waits_for_a_migration_waits_and_one_that_died_holds_nobody(settings: Settings) -> None:
    migrate(settings)
    done = threading.Event()
    with psycopg.connect(plain(settings), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [databases.MIGRATION_LOCK])

        def start() -> None:
            migrate(settings)
            done.set()

        starter = threading.Thread(target=start)
        starter.start()
        assert not done.wait(0.5)
    starter.join(30)  # the lock went with its connection
    assert done.is_set()


def calls(path: Path) -> list[ast.Call]:
    upgrade = next(
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "upgrade"
    )
    return [node for node in ast.walk(upgrade) if isinstance(node, ast.Call)]


def complaints(path: Path) -> list[str]:
    found = []
    for call in calls(path):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        words = {keyword.arg: keyword.value for keyword in call.keywords}
        said = ast.unparse(call)
        if name in TAKES_AWAY:
            found.append(f"takes something away: {said[:90]}")
        if name == "add_column":
            column = next(part for part in call.args if isinstance(part, ast.Call))
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in column.keywords}
            if given.get("nullable") == "False" and "server_default" not in given:
                found.append(f"the code before cannot leave it out: {said[:90]}")
        if name == "execute" and any(
            word in said.upper() for word in ("DROP COLUMN", "DROP TABLE", "RENAME ", "SET NOT NULL")
        ):
            found.append(f"takes something away: {said[:90]}")
        if name == "create_unique_constraint" or (
            name == "create_index" and "unique" in words and ast.unparse(words["unique"]) == "True"
        ):
            found.append(f"refuses what the code before may write: {said[:90]}")
    return found


@pytest.mark.parametrize(
    "path", [path for path in VERSIONS if path.name[:4] not in YOUNG], ids=lambda p: p.stem
)
def test_a_migration_takes_nothing_away_from_the_code_before(path: Path) -> None:
    assert complaints(path) == []


def test_a_migration_that_would_break_the_code_before_is_seen(tmp_path: Path) -> None:
    for body in (
        'op.drop_column("jobs", "seed")',
        'op.alter_column("jobs", "seed", new_column_name="seeds")',
        'op.add_column("jobs", sa.Column("x", sa.String(), nullable=False))',
        'op.execute("ALTER TABLE jobs RENAME COLUMN seed TO seeds")',
        'op.create_index("i", "jobs", ["owner"], unique=True)',
    ):
        path = tmp_path / "9999_bad.py"
        path.write_text(f"def upgrade() -> None:\n    {body}\n")
        assert complaints(path), body
    path.write_text(
        'def upgrade() -> None:\n    op.add_column("jobs", sa.Column("x", sa.String(), nullable=True))\n'
    )
    assert complaints(path) == []


def test_migrations_make_the_tables_that_the_code_declares(settings: Settings) -> None:
    """Columns and whether they may be null; a chain that forks would have no head."""
    migrate(settings)
    assert len(revisions()) == len(VERSIONS)
    engine = create_engine(databases.database_url(settings))
    with engine.connect() as connection:
        there = inspect(connection)
        for table in Base.metadata.sorted_tables:
            columns = {column["name"]: column["nullable"] for column in there.get_columns(table.name)}
            declared = {column.name: bool(column.nullable) for column in table.columns}
            assert columns == declared, str(CreateTable(table))
            indexes = {index["name"] for index in there.get_indexes(table.name)}
            assert {index.name for index in table.indexes} <= indexes, table.name
    engine.dispose()
