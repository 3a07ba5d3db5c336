"""One moment of the database, held still: what it dumps and which objects it speaks of belong together.

For as long as it is held no bytes are removed anywhere (`app.purge.may_remove`), so what the moment speaks of
is still there when it is copied, however long that takes. Objects never change once they are there.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, func, select, text
from sqlalchemy.orm import Session

from app.database import database_url, make_engine
from app.embedded import postgres
from app.embedded.process import EmbeddedError
from app.lifecycle.claims import ENDED
from app.purge import REMOVAL_LOCK
from app.settings import Settings
from app.tables import Checkpoint, File, Job, Model
from app.uploads.rows import Upload
from app.webhooks.rows import WebhookEndpoint

LAST_LINES = 8  # of what pg_dump or pg_restore said


class BackupError(Exception):
    """What keeps a backup from being made or restored, as one sentence that says what to do."""


@dataclass(frozen=True)
class Snapshot:
    """`name` is PostgreSQL's; `keys` are those of all objects that the rows of this moment speak of; `signs`:
    there are webhooks, whose secrets are made of the home's `webhook_key`."""

    name: str
    revision: str
    keys: list[str]
    signs: bool


@contextmanager
def held(settings: Settings) -> Iterator[Snapshot]:
    """Raises BackupError where the database has no schema; SQLAlchemyError where it does not answer."""
    engine = make_engine(settings)
    try:
        with (
            engine.connect().execution_options(isolation_level="AUTOCOMMIT") as lock,
            Session(engine) as session,
        ):
            # Before the moment is chosen: whatever is being removed now was deleted before it.
            lock.execute(select(func.pg_advisory_lock(REMOVAL_LOCK)))
            session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            if session.scalar(text("SELECT to_regclass('alembic_version')")) is None:
                raise BackupError("The database is empty: there is nothing to back up.")
            name = session.scalars(text("SELECT pg_export_snapshot()")).one()
            revision = session.scalars(text("SELECT version_num FROM alembic_version")).one()
            signs = session.scalars(select(select(WebhookEndpoint.id).exists())).one()
            yield Snapshot(name, revision, keys(session), signs)
    finally:
        engine.dispose()  # and the lock with its connection


def keys(session: Session) -> list[str]:
    found: set[str] = set()
    for table in (File, Checkpoint, Model, Upload):
        kept = select(table.key).where(table.deleted_at.is_(None), table.key.is_not(None))
        found.update(filter(None, session.scalars(kept)))
    # A job may begin from a checkpoint that has been saved anew since, under another key.
    waiting = select(Job.source).where(Job.source.startswith("store:"), Job.status.not_in(ENDED))
    found.update(source.removeprefix("store:") for source in session.scalars(waiting))
    return sorted(found)


def dump(settings: Settings, snapshot: Snapshot, target: Path) -> None:
    """The database as of that moment, in PostgreSQL's own compressed format. Raises BackupError."""
    options = ["--format=custom", "--no-owner", "--no-privileges", "--no-unlogged-table-data"]
    # Policies let a session that names no owner have every row (app/guard.py), and pg_dump none without this.
    options += ["--enable-row-security"]
    run("pg_dump", settings, *options, f"--snapshot={snapshot.name}", f"--file={target}")


def load(settings: Settings, source: Path) -> None:
    """All of a dump, or nothing. Raises BackupError."""
    options = ["--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges"]
    run("pg_restore", settings, *options, str(source))


def run(program: str, settings: Settings, *arguments: str) -> None:
    """One of PostgreSQL's own programs on the database; its password travels in the environment, which
    holds nothing else: how to connect is the URL's to say."""
    url = database_url(settings)
    command = [str(_program(program)), *arguments, f"--dbname={_address(url)}"]
    environment = {"PGPASSWORD": url.password or "", "PGCONNECT_TIMEOUT": "10"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = "\n".join(done.stderr.splitlines()[-LAST_LINES:])
        raise BackupError(f"{program} failed:\n{said}")


def _address(url: URL) -> str:
    bare = URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query)
    return bare.render_as_string()


def _program(name: str) -> Path:
    """The wheel's, else the system's. Raises BackupError."""
    try:
        return postgres.binary(name)
    except EmbeddedError:
        found = shutil.which(name)
    if found is None:
        raise BackupError(
            f"{name} is not here: install PostgreSQL's client programs, or finetuned[embedded]."
        )
    return Path(found)
