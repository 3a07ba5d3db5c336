"""Carries deliveries to their endpoints: claims what is due, signs and sends it, notes what came of it."""

import asyncio
import contextlib
from datetime import UTC, datetime
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.database import Database, run
from app.errors import TooMany
from app.settings import Settings
from app.watch.traffic import Traffic
from app.webhooks import deliveries, event, secret
from app.webhooks.deliveries import Claimed
from app.webhooks.post import Outcome, Post

log = structlog.get_logger()
AT_ONCE = 20  # deliveries under way in one process
TESTS_AT_ONCE = 8  # test events, which a caller waits for
LEASE_TIMES = 6  # the timeout: what is still under way then, died with its process
# The job of a test event; nobody's, and shaped like one.
SAMPLE_JOB = "ftjob-" + "0" * 24


class WrongKey(Exception):
    """The home folder's `webhook_key` is not the one that the endpoint's secret was made with, or is gone."""


class Courier:
    """One an API process; any number of them share the work."""

    def __init__(
        self, settings: Settings, database: Database, traffic: Traffic, post: Post | None = None
    ) -> None:
        self._settings, self._database, self._traffic = settings, database, traffic
        self._post = post or Post(settings.webhook_allow, settings.webhook_timeout)
        self._lease = settings.webhook_timeout * LEASE_TIMES
        self._under_way: set[asyncio.Task[None]] = set()
        self._testing = asyncio.Semaphore(TESTS_AT_ONCE)
        self._freed = asyncio.Event()

    async def send_due(self) -> None:
        """Start as many deliveries as there is room for; they end by themselves."""
        self._freed.clear()
        room = AT_ONCE - len(self._under_way)
        if room == 0:
            return
        async with self._database.transaction() as session:
            due = await run(session, deliveries.claim, room, self._lease)
        for each in due:
            task = asyncio.create_task(self._deliver(each))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    @property
    def is_busy(self) -> bool:
        return bool(self._under_way)

    async def pause(self, longest: float) -> None:
        """Until a delivery has ended: its endpoint's next may be due."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._freed.wait(), longest)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        self._freed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # Unrecorded: the lease runs out and it is sent again, under the same id.
            level = log.warning if isinstance(error, SQLAlchemyError | OSError) else log.error
            level("webhook_not_recorded", error=type(error).__name__, exc_info=error)

    async def _deliver(self, due: Claimed) -> None:
        try:
            signed = sign(self._settings.home, due.endpoint_id, due.salts, due.hint, due.event_id, due.body)
        except WrongKey as error:
            outcome = Outcome(None, f"Not sent: {error}", 0.0)
        else:
            outcome = await self._post.send(due.url, signed, due.body.encode())
        async with self._database.transaction() as session:
            status = await run(session, deliveries.record, due, outcome, self._settings.webhook_retries)
        self._traffic.webhooks.labels(status or "lost").inc()
        log.info(
            "webhook_sent",
            endpoint=due.endpoint_id,
            event_id=due.event_id,
            attempt=due.attempts,
            status_code=outcome.status_code,
            error=outcome.error,
            delivery=status or "lost",
        )

    async def test(self, endpoint_id: str, url: str, salts: tuple[str, ...], hint: str, kind: str) -> Outcome:
        """Send a sample event at once and only once; it stands in no log.

        Raises TooMany where many are being sent already.
        """
        if self._testing.locked():
            raise TooMany("Too many webhook tests are under way; try again in a moment.")
        event_id = event.new_id()
        body = event.body(event_id, kind, datetime.now(UTC), SAMPLE_JOB)
        async with self._testing:
            try:
                signed = sign(self._settings.home, endpoint_id, salts, hint, event_id, body)
            except WrongKey as error:
                return Outcome(None, f"Not sent: {error}", 0.0)
            return await self._post.send(url, signed, body.encode())

    async def close(self) -> None:
        """Let go of what is under way; another process sends it again when its lease runs out."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._post.close()


def sign(
    home: Path, endpoint_id: str, salts: tuple[str, ...], hint: str, event_id: str, body: str
) -> dict[str, str]:
    """The headers of a delivery that is sent now. Raises WrongKey."""
    try:
        key = secret.read_key(home)
    except (OSError, ValueError) as error:
        raise WrongKey("the home folder's `webhook_key` cannot be read.") from error
    signers = [secret.derive(key, endpoint_id, salt) for salt in salts]
    if secret.hint(signers[0]) != hint:
        raise WrongKey(
            "the home folder holds another `webhook_key` than the one this endpoint's secret was made with."
            " Restore the file, or rotate the secret."
        )
    at = int(datetime.now(UTC).timestamp())
    return {
        "content-type": "application/json",
        "user-agent": "finetuned-webhooks",
        "webhook-id": event_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(secret.sign(each, event_id, at, body.encode()) for each in signers),
    }
