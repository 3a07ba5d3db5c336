"""What every API process does beside answering: it announces queued jobs, finds dead claims, delivers
webhooks, removes bytes.

It is the only publisher. Any number of processes may do all of it: the statements are conditional, a doubled
message finds nothing to claim. Each duty has a loop of its own, so that a broker that hangs keeps no dead
worker's job waiting, and the removal of a large folder keeps no new job.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import ParamSpec, TypeVar

import structlog
from celery import Celery
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app import litter, purge, retention
from app.database import Database, run
from app.lifecycle import announcements, claims, yielding
from app.lifecycle.offers import MISSED
from app.queue import announce, answers, make_celery
from app.settings import Settings
from app.storage import Store, StoreAway
from app.tables import now
from app.watch.traffic import Traffic
from app.webhooks import deliveries
from app.webhooks.courier import Courier

log = structlog.get_logger()
LOOK_EVERY = 1.0  # seconds; a retry whose delay is over is found by looking
BREATH = 0.2  # what a burst of new jobs brings is announced together, and not after each of them
TIDY_EVERY = 600.0
BROKER_PATIENCE = 5  # seconds


P = ParamSpec("P")
T = TypeVar("T")


async def _in(threads: ThreadPoolExecutor, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, lambda: work(*given, **named))


class Connection:
    """Since when the database has answered without a break: before that, silence proves no worker dead.

    A break is an error, or more than `longest` between two looks, by this process's clock (it was frozen, or
    the database was) or by the database's (the machine slept, or the clock was set).
    """

    def __init__(self, longest: timedelta) -> None:
        self._longest = longest
        self._since: float | None = None
        self._last = 0.0
        self._last_there: datetime | None = None

    def held(self, there: datetime) -> timedelta:
        """How long the connection has held, with this look, made when the database's clock said `there`."""
        here = time.monotonic()
        gap = here - self._last > self._longest.total_seconds()
        jump = self._last_there is not None and not -self._longest < there - self._last_there < self._longest
        if self._since is None or gap or jump:
            self._since = here
        self._last, self._last_there = here, there
        return timedelta(seconds=here - self._since)

    def broke(self) -> None:
        self._since = None


class Dispatcher:
    """The loops and what they know."""

    def __init__(self, settings: Settings, database: Database, store: Store, traffic: Traffic) -> None:
        self.settings, self.database, self.store = settings, database, store
        self.broker_reachable = True
        self.rounds: dict[str, float] = {}  # when each loop last did its duty, on the monotonic clock
        self._celery: Celery = make_celery(settings, BROKER_PATIENCE)
        # A thread for each, so that none waits behind uploads, which share the loop's own threads.
        self._publisher = ThreadPoolExecutor(1, "publish")
        self._remover = ThreadPoolExecutor(1, "remove")
        self.courier = Courier(settings, database, traffic)
        self._connection = Connection(settings.lease)
        self._swept_at = 0.0

    async def run_forever(self) -> None:
        look = min(LOOK_EVERY, self.settings.sweep_interval.total_seconds())
        async with asyncio.TaskGroup() as loops:
            for name, duty, pause in (
                ("announce", self._announce_due, self._pause_until_woken),
                ("sweep", self._sweep, lambda: asyncio.sleep(look)),
                ("make_room", self._make_room, lambda: asyncio.sleep(look)),
                ("webhooks", self.courier.send_due, lambda: self.courier.pause(LOOK_EVERY)),
                ("purge", self._purge, lambda: asyncio.sleep(LOOK_EVERY)),
                ("tidy", self._tidy, lambda: asyncio.sleep(TIDY_EVERY)),
            ):
                self.rounds[name] = time.monotonic()
                loops.create_task(self._repeat(name, duty, pause))

    async def _repeat(
        self, name: str, duty: Callable[[], Awaitable[None]], pause: Callable[[], Awaitable[None]]
    ) -> None:
        while True:
            try:
                await duty()
                self.rounds[name] = time.monotonic()
            except (SQLAlchemyError, OSError) as error:
                self._connection.broke()
                log.warning("dispatch_interrupted", error=type(error).__name__)
                await asyncio.sleep(LOOK_EVERY)
            except Exception:
                # These loops must outlive whatever happens in them: without them no job ever starts.
                log.exception("dispatch_failed")
                await asyncio.sleep(LOOK_EVERY)
            await pause()

    async def _pause_until_woken(self) -> None:
        await asyncio.sleep(BREATH)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.database.woken.wait(), LOOK_EVERY)
        self.database.woken.clear()

    async def _announce_due(self) -> None:
        again, fresh = self.settings.redispatch, MISSED * self.settings.heartbeat
        if not self.broker_reachable and not await self.ping_broker():
            return  # a worker that hears nothing of what is marked as announced takes itself for deaf
        async with self.database.transaction() as session:
            due = await run(session, announcements.due, again, fresh)
        for job_id in due:
            async with self.database.transaction() as session:
                if not await run(session, announcements.mark_dispatched, job_id):
                    continue
            try:
                await _in(self._publisher, announce, self._celery, job_id)
            except Exception as error:  # kombu and redis-py raise many kinds; all mean: not now
                if self.broker_reachable:
                    log.warning("broker_unreachable", error=type(error).__name__)
                self.broker_reachable = False
                async with self.database.transaction() as session:
                    await run(session, announcements.take_back, job_id)
                return
            self.broker_reachable = True

    async def _make_room(self) -> None:
        """Where urgent jobs wait and no slot is free, somebody gives way."""
        settings, fresh = self.settings, MISSED * self.settings.heartbeat
        async with self.database.transaction() as session:
            await run(session, yielding.withdraw)
            asked = await run(session, yielding.make_room, settings.preempt_after, settings.redispatch, fresh)
        for job_id in asked:
            log.info("asked_to_give_way", job_id=job_id)

    async def _purge(self) -> None:
        """Remove the bytes of what is marked as deleted; a store that refuses is asked again next time."""
        async with self.database.transaction() as session:
            await purge.expire_files(session)
            await purge.expire_uploads(session)
            found = await purge.doomed(session) if await purge.may_remove(session) else []
        for doomed in found:
            try:
                await _in(self._remover, purge.remove, self.store, doomed)
            except StoreAway as error:
                log.warning("not_purged", key=doomed.key, error=str(error))
                return
            except (OSError, ValueError) as error:  # a link in its path leads out of the store
                log.warning("not_purged", key=doomed.key, error=str(error))
                continue
            async with self.database.transaction() as session:
                await purge.forget(session, doomed)

    async def _sweep(self) -> None:
        """Only after a whole lease of unbroken connection: right after an outage every healthy worker looks
        dead, since none could report."""
        async with self.database.transaction() as session:
            there: datetime = (await session.execute(select(now))).scalar_one()
        if self._connection.held(there) < self.settings.lease + self.settings.lease_grace:
            return
        at = time.monotonic()
        if at - self._swept_at < self.settings.sweep_interval.total_seconds():
            return
        self._swept_at = at
        async with self.database.transaction() as session:
            lost = await run(session, claims.reap, self.settings.lease_grace)
            await run(session, announcements.tell_unserved, MISSED * self.settings.heartbeat)
        for job_id in lost:
            log.warning("claim_reaped", job_id=job_id)

    async def _tidy(self) -> None:
        """Remove what no row speaks of."""
        async with self.database.transaction() as session:
            await purge.forget_workers(session)
            await run(session, deliveries.forget, self.settings.webhook_log)
        await self._retire()
        for part in await _in(self._remover, litter.parts, self.store):
            async with self.database.transaction() as session:
                if not await purge.may_remove(session):
                    return
                known = await run(session, litter.known, part)
            gone = await _in(self._remover, litter.remove, self.store, part, known)
            if gone:
                log.info("litter_removed", keys=gone[:20], count=len(gone))

        await _in(self._remover, self.store.sweep)

    async def _retire(self) -> None:
        """What is kept of ended jobs only for a time, a batch a transaction."""
        for verb, age in (
            (retention.retire_checkpoints, self.settings.checkpoint_retention),
            (retention.forget_events, self.settings.event_retention),
            (retention.thin_metrics, self.settings.metric_retention),
        ):
            count = 1 if age is not None else 0
            while age is not None and count:
                async with self.database.transaction() as session:
                    count = await run(session, verb, age)
                if count:
                    log.info("retired", what=verb.__name__, count=count)

    async def ping_broker(self) -> bool:
        """Whether the broker answers within two seconds."""
        return await answers(self.settings, 2.0)

    async def close(self) -> None:
        """Without waiting: a broker that swallows everything may hold the publisher for a while."""
        await self.courier.close()
        for threads in (self._publisher, self._remover):
            threads.shutdown(wait=False, cancel_futures=True)


@contextlib.asynccontextmanager
async def dispatching(
    settings: Settings, database: Database, store: Store, traffic: Traffic
) -> AsyncIterator[Dispatcher]:
    """The loops, for as long as the context lasts."""
    dispatcher = Dispatcher(settings, database, store, traffic)
    task = asyncio.create_task(dispatcher.run_forever(), name="dispatch")
    try:
        yield dispatcher
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await dispatcher.close()
