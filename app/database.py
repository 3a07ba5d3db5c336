"""The engine, and `transaction()`: the only place that commits; what is to follow a commit follows it here.

The API uses psycopg's asynchronous side, the worker the synchronous one, over the same URL.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import alembic.command
import alembic.config
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from app.guard import OWNER, GuardedSession
from app.settings import Settings

MIGRATIONS = Path(__file__).parent.parent / "migrations"
# Any constant will do, as long as every process of every version uses the same.
MIGRATION_LOCK = 0x66740001
POOL_SIZE = 10
WAKE = "wake"
# A statement may wait so long for a row that somebody else holds; all our transactions are milliseconds.
# A connection whose other end vanished without a word is noticed within half a minute; TCP alone would take a
# quarter of an hour, and longer to notice that it is back.
CONNECT_ARGUMENTS = {
    "connect_timeout": 5,
    "options": "-c statement_timeout=30000 -c lock_timeout=10000",
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


P = ParamSpec("P")
T = TypeVar("T")


class NotConfigured(RuntimeError):
    """DATABASE_URL is missing: only `finetuned up` brings its own database."""


def database_url(settings: Settings) -> URL:
    """The URL with the one driver we use, whatever spelling was given.

    Raises NotConfigured where none is set.
    """
    if settings.database_url is None:
        raise NotConfigured("DATABASE_URL is not set; `finetuned up` starts a database of its own")
    url = make_url(settings.database_url.get_secret_value())
    return url.set(drivername="postgresql+psycopg")


def make_engine(settings: Settings) -> Engine:
    """For the worker: synchronous. A connection found dead is replaced before it is used."""
    return create_engine(
        database_url(settings),
        pool_size=POOL_SIZE,
        pool_pre_ping=True,
        hide_parameters=True,  # an error's text would carry what was to be written into the logs
        connect_args=CONNECT_ARGUMENTS,
    )


def make_async_engine(settings: Settings) -> AsyncEngine:
    """For the API. Waiting longer than 5 s for a connection is an outage, and answered as one (503)."""
    return create_async_engine(
        database_url(settings),
        pool_size=POOL_SIZE,
        max_overflow=10,
        pool_timeout=5,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args=CONNECT_ARGUMENTS,
    )


class Database:
    """The API's side: sessions whose transaction is committed on leaving."""

    def __init__(self, settings: Settings) -> None:
        self.engine = make_async_engine(settings)
        self._sessions = async_sessionmaker(
            self.engine, expire_on_commit=False, sync_session_class=GuardedSession
        )
        self.woken = asyncio.Event()

    @asynccontextmanager
    async def transaction(self, owner: str | None = None) -> AsyncIterator[AsyncSession]:
        """One transaction: committed at the end, rolled back on an exception. A request's names the `owner`
        who asks, and has only their rows.

        The mark WAKE in the session's `info` wakes the dispatcher, after the commit and only after one.
        """
        async with self._sessions(info={} if owner is None else {OWNER: owner}) as session:
            yield session
            await session.commit()
            if session.info.get(WAKE):
                self.woken.set()

    async def close(self) -> None:
        await self.engine.dispose()


class WorkerDatabase:
    """The worker's side of the same."""

    def __init__(self, settings: Settings) -> None:
        self.engine = make_engine(settings)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with self._sessions() as session:
            yield session
            session.commit()

    def close(self) -> None:
        self.engine.dispose()


def _configuration() -> alembic.config.Config:
    configuration = alembic.config.Config()
    configuration.set_main_option("script_location", str(MIGRATIONS))
    return configuration


@cache
def revisions() -> tuple[str, ...]:
    """Every schema that this release knows, the newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_configuration()).walk_revisions())


def migrate(settings: Settings, to: str = "head") -> None:
    """Bring the database to the newest schema; processes that start together wait for one another."""
    configuration = _configuration()
    engine = create_engine(database_url(settings))
    try:
        with engine.connect() as connection:
            connection.execute(text(f"SELECT pg_advisory_lock({MIGRATION_LOCK})"))
            connection.commit()
            try:
                configuration.attributes["connection"] = connection
                alembic.command.upgrade(configuration, to)
            finally:
                connection.rollback()
                connection.execute(text(f"SELECT pg_advisory_unlock({MIGRATION_LOCK})"))
                connection.commit()
    finally:
        engine.dispose()


async def run(
    session: AsyncSession,
    verb: Callable[Concatenate[Session, P], T],
    *arguments: P.args,
    **named: P.kwargs,
) -> T:
    """Call a synchronous verb (of `lifecycle`) on an asynchronous session: verbs are written once."""
    return await session.run_sync(verb, *arguments, **named)
