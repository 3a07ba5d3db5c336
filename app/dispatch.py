"""The loop in every API process that announces queued jobs and finds dead claims.

It is the only publisher, is woken by a commit that makes a job due and looks by itself every second. Any
number of processes may run it: its statements are conditional, and a doubled message finds nothing to claim.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import structlog
from celery import Celery
from sqlalchemy.exc import SQLAlchemyError

from app import purge
from app.database import Database, run
from app.lifecycle import claims
from app.queue import announce, make_celery
from app.settings import Settings
from app.storage import Store

log = structlog.get_logger()
LOOK_EVERY = 1.0  # seconds; a retry whose delay is over is found by looking
# Redis holds tens of messages, not the backlog: so priorities and cancels act at once.
WINDOW = 16


class Dispatcher:
    """Knows since when it could reach the database without a break: the sweep depends on it."""

    def __init__(self, settings: Settings, database: Database, store: Store) -> None:
        self.settings, self.database, self.store = settings, database, store
        self.broker_reachable = True
        self._celery: Celery = make_celery(settings)
        self._connected_since: float | None = None
        self._swept_at = 0.0

    async def run_forever(self) -> None:
        while True:
            try:
                self.database.woken.clear()
                await self._announce_due()
                await self._purge()
                await self._sweep()
            except (SQLAlchemyError, OSError) as error:
                self._connected_since = None
                log.warning("dispatch_interrupted", error=type(error).__name__)
                await asyncio.sleep(LOOK_EVERY)
            except Exception:
                # This loop must outlive whatever happens in it: without it no job ever starts.
                self._connected_since = None
                log.exception("dispatch_failed")
                await asyncio.sleep(LOOK_EVERY)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.database.woken.wait(), LOOK_EVERY)

    async def _announce_due(self) -> None:
        async with self.database.transaction() as session:
            due = await run(session, claims.due, self.settings.redispatch, WINDOW)
        for job_id in due:
            try:
                await asyncio.to_thread(announce, self._celery, job_id, self.settings)
            except Exception as error:  # kombu and redis-py raise many kinds; all mean: not now
                if self.broker_reachable:
                    log.warning("broker_unreachable", error=type(error).__name__)
                self.broker_reachable = False
                return
            self.broker_reachable = True
            async with self.database.transaction() as session:
                await run(session, claims.mark_dispatched, job_id)

    async def _purge(self) -> None:
        """Remove the bytes of what is marked as deleted; a store that refuses is asked again next time."""
        async with self.database.transaction() as session:
            await purge.expire_files(session)
            found = await purge.doomed(session)
        for table, row_id, key in found:
            try:
                await asyncio.to_thread(self.store.delete, key)
            except OSError as error:
                log.warning("not_purged", key=key, error=str(error))
                continue
            async with self.database.transaction() as session:
                await purge.forget(session, table, row_id)

    async def _sweep(self) -> None:
        """Only after a whole lease of unbroken connection: right after an outage every healthy worker looks
        dead, since none could report."""
        at = time.monotonic()
        if self._connected_since is None:
            self._connected_since = at
        warm = (self.settings.lease + self.settings.lease_grace).total_seconds()
        if at - self._connected_since < warm:
            return
        if at - self._swept_at < self.settings.sweep_interval.total_seconds():
            return
        self._swept_at = at
        async with self.database.transaction() as session:
            lost = await run(session, claims.reap, self.settings.lease_grace)
        for job_id in lost:
            log.warning("claim_reaped", job_id=job_id)
        await asyncio.to_thread(purge.sweep_temporary, self.store)

    async def ping_broker(self) -> bool:
        """Whether the broker answers within two seconds."""

        def ping() -> None:
            with self._celery.connection_for_write(connect_timeout=2) as connection:
                connection.ensure_connection(max_retries=1, timeout=2)
                connection.default_channel.client.ping()

        try:
            await asyncio.wait_for(asyncio.to_thread(ping), 3)
        except Exception:
            return False
        return True


@contextlib.asynccontextmanager
async def dispatching(settings: Settings, database: Database, store: Store) -> AsyncIterator[Dispatcher]:
    """The loop, for as long as the context lasts."""
    dispatcher = Dispatcher(settings, database, store)
    task = asyncio.create_task(dispatcher.run_forever(), name="dispatch")
    try:
        yield dispatcher
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
