"""Jobs' events and metrics as they come, for any number of listeners at the cost of one.

One task a process looks twice a second at the jobs that somebody listens to, with a few statements whatever
the number of jobs and listeners, and keeps the newest items of each in a short tail. A listener takes from
the tail, and from the database what lies before it: one that is slow or new holds up nobody and fills no
memory.

Why a cursor, the last event and the last step seen, leaves nothing out: all that writes them holds the lock
of the job's row (lifecycle.history, lifecycle.claims.beat), so both become visible in the order of their
numbers. A step that is trained again after a crash is not sent again: it gave the same numbers.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import structlog
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app import wire
from app.database import Database
from app.errors import InvalidRequest, TooMany
from app.feed_rows import Cursor, Item, dump, read
from app.lifecycle.claims import ENDED
from app.tables import Event, Job, Metric

log = structlog.get_logger()
LOOK_EVERY = 0.5  # seconds
HEARTBEAT = 15.0  # seconds of silence before a comment; proxies cut what is silent for a minute
LONGEST = 3600.0  # seconds: a key that was revoked is looked at again
TAIL = 1_000  # items of a job kept for all its listeners: about 400 kB
PAGE = 500  # items read at once
MOST_LISTENERS = 1_000  # in one process
ENDED_MARK = ":end"


async def find_cursor(session: AsyncSession, job_id: str, said: str) -> Cursor:
    """Where the stream with that id stopped; "" is its beginning. Raises InvalidRequest."""
    event_id, _, step = said.partition(":")
    refusal = InvalidRequest(f"Not an id of this stream: {said!r}", param="after", code="invalid_cursor")
    if step and not (step.isascii() and step.isdigit() and len(step) < 19):
        raise refusal
    seq = 0
    if event_id:
        found = await session.scalar(select(Event.seq).where(Event.id == event_id, Event.job_id == job_id))
        if found is None:
            raise refusal
        seq = found
    return Cursor(seq, event_id, int(step) if step else -1)


@dataclass
class Channel:
    """One job that is listened to. `tail` holds the items beyond `floor`, up to `head`."""

    job_id: str
    head: Cursor
    floor: Cursor
    listeners: int = 0
    ended: bool = False
    tail: deque[Item] = field(default_factory=deque)
    dropped: int = 0  # items that have left the tail
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, items: Sequence[Item]) -> None:
        for item in items:
            self.tail.append(item)
            self.head = self.head.past(item)
            if len(self.tail) > TAIL:
                self.floor = self.floor.past(self.tail.popleft())
                self.dropped += 1

    def tell(self) -> None:
        """Wake everybody who waits."""
        self.changed.set()
        self.changed = asyncio.Event()

    def since(self, place: int) -> list[Item]:
        """The tail from its `place`-th item on, counted from the channel's first."""
        return list(islice(self.tail, max(0, place - self.dropped), None))


class Feed:
    """The task and its channels."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._channels: dict[str, Channel] = {}
        self._wanted = asyncio.Event()

    async def run_forever(self) -> None:
        """Look, as long as anybody listens."""
        while True:
            if not self._channels:
                await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._look()
            except (SQLAlchemyError, OSError) as error:
                log.warning("feed_interrupted", error=type(error).__name__)
            except Exception:
                log.exception("feed_failed")  # all streams of this process hang on this task
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), LOOK_EVERY)

    async def _look(self) -> None:
        channels = {channel.job_id: channel for channel in self._channels.values() if not channel.ended}
        if not channels:
            return
        async with self.database.transaction() as session:
            # The states first: of a job that has ended by now everything is there to be read after.
            states = await session.execute(select(Job.id, Job.status).where(Job.id.in_(channels)))
            going_on = {row.id for row in states if row.status not in ENDED}
            found = await read(session, {job_id: channel.head for job_id, channel in channels.items()}, PAGE)
        for job_id, channel in channels.items():
            items = found.get(job_id, [])
            channel.add(items)
            channel.ended = job_id not in going_on and not items
            if items or channel.ended:
                channel.tell()
            if items and (job_id not in going_on or len(items) >= PAGE):
                self._wanted.set()  # there is more

    @contextlib.asynccontextmanager
    async def _listening(self, job_id: str) -> AsyncIterator[Channel]:
        channel = self._channels.get(job_id)
        if channel is None:
            head = await self._newest(job_id)
            channel = self._channels.setdefault(job_id, Channel(job_id, head, head))
        channel.listeners += 1
        self._wanted.set()
        try:
            yield channel
        finally:
            channel.listeners -= 1
            if not channel.listeners and self._channels.get(job_id) is channel:
                del self._channels[job_id]

    async def _newest(self, job_id: str) -> Cursor:
        async with self.database.transaction() as session:
            last = (
                select(Event.seq, Event.id).where(Event.job_id == job_id).order_by(Event.seq.desc()).limit(1)
            )
            event = (await session.execute(last)).one_or_none()
            step = await session.scalar(select(func.max(Metric.step)).where(Metric.job_id == job_id))
        seq, event_id = (event.seq, event.id) if event else (0, "")
        return Cursor(seq, event_id, -1 if step is None else step)

    def refuse_more(self) -> None:
        """Raises TooMany when this process has all the listeners that it may have."""
        if sum(channel.listeners for channel in self._channels.values()) >= MOST_LISTENERS:
            raise TooMany("Too many streams are open; poll, or try again later.", code="too_many_streams")

    async def follow(self, job_id: str, cursor: Cursor, organization: str) -> AsyncGenerator[str]:
        """The lines of one listener's stream, from `cursor` on."""
        deadline = time.monotonic() + LONGEST
        place = 0  # items of the channel that are behind us
        async with self._listening(job_id) as channel:
            while time.monotonic() < deadline:
                changed = channel.changed
                if cursor.is_before(channel.floor):
                    items = await self._page(job_id, cursor)
                    place = channel.dropped
                    if not items:
                        yield ": the database does not answer\n\n"
                        await asyncio.sleep(LOOK_EVERY)
                        continue
                else:
                    place = max(place, channel.dropped)
                    new = channel.since(place)
                    place += len(new)
                    items = [item for item in new if not cursor.sees(item)]
                for item in items:
                    cursor = cursor.past(item)
                    yield _message(str(cursor), item.text)
                if items:
                    continue
                if channel.ended and not cursor.is_before(channel.head):
                    yield await self._last(job_id, cursor, organization)
                    return
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT)
                except TimeoutError:
                    yield ": still here\n\n"

    async def _page(self, job_id: str, cursor: Cursor) -> list[Item]:
        """The next items from the database; none when it is away."""
        try:
            async with self.database.transaction() as session:
                return (await read(session, {job_id: cursor}, PAGE)).get(job_id, [])
        except (SQLAlchemyError, OSError) as error:
            log.warning("feed_interrupted", error=type(error).__name__)
            return []

    async def _last(self, job_id: str, cursor: Cursor, organization: str) -> str:
        async with self.database.transaction() as session:
            job = await session.get(Job, job_id)
            text = "null" if job is None else dump(wire.job(job, organization))
            return _message(f"{cursor}{ENDED_MARK}", text)


def _message(message_id: str, text: str) -> str:
    return f"id: {message_id}\ndata: {text}\n\n"


@contextlib.asynccontextmanager
async def feeding(database: Database) -> AsyncIterator[Feed]:
    """A feed, for as long as the context lasts."""
    feed = Feed(database)
    task = asyncio.create_task(feed.run_forever(), name="feed")
    try:
        yield feed
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
