"""A trainer's events reach the database: batched, in order, under the claim's epoch; wishes come back.

It runs in a thread of its own, so that a slow or absent database never slows training: what cannot be written
waits in memory and is written later, in order. When the claim is lost nothing more is written at all.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from sqlalchemy.orm import Session

from app.database import WorkerDatabase
from app.lifecycle.claims import Claim, Wishes
from app.settings import Settings
from worker.rows import Heard, Rows, is_outage
from worker.training import events

log = structlog.get_logger()
T = TypeVar("T")
WRITE_EVERY = 1.0  # seconds: how fresh the numbers are that a user polls
BATCH = 2000  # events in one transaction, which holds the job's row for a second at most
SPOOL = 250_000  # events that may wait for an absent database: about 150 MB


class ClaimLost(Exception):
    """Somebody else has the job now."""


class Offline(Exception):
    """The database has been away for longer than `max_offline`."""


class Recorder:
    """Writes what one attempt reports, and its heartbeat."""

    def __init__(self, database: WorkerDatabase, settings: Settings, held: Claim) -> None:
        self.database, self.settings, self.held = database, settings, held
        self.wishes = Wishes(cancel=False, pause=False)
        self.lost = False
        self.offline_since: float | None = None
        self._rows = Rows(settings, held)
        self._waiting: list[Heard] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._singly = False  # after a refusal, for one batch
        self._beat_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"record-{held.job_id}", daemon=True)
        self._thread.start()

    def expect(self, model_name: str, keep: int) -> None:
        """Checkpoints are to be named after `model_name`, and `keep` of them stay."""
        self._rows.model_name, self._rows.keep = model_name, keep

    def add(self, event: events.Event) -> None:
        """Take an event; returns at once."""
        with self._lock:
            self._waiting.append(self._rows.hear(event))

    @property
    def crashes(self) -> int:
        """Attempts since the newest checkpoint, this one included."""
        return self._rows.crashes

    @property
    def too_long_offline(self) -> bool:
        since = self.offline_since
        long = since is not None and time.monotonic() - since > self.settings.max_offline.total_seconds()
        return long or len(self._waiting) > SPOOL

    def _run(self) -> None:
        while not self._closing and not self.lost:
            backlog = len(self._waiting) >= BATCH or self._singly
            if self.offline_since is not None or not backlog:
                self._wake.wait(self._delay())
            if not self._closing:
                self._write_once()

    def _delay(self) -> float:
        if self.offline_since is not None:
            return random.uniform(0.5, 1.5)  # noqa: S311  # spreads many workers' reconnects, no secret
        heartbeat = self.settings.heartbeat.total_seconds()
        return min(WRITE_EVERY, heartbeat)

    def _write_once(self) -> None:
        due = time.monotonic() - self._beat_at >= self.settings.heartbeat.total_seconds()
        if not self._waiting and not due:
            return
        try:
            with self.database.transaction() as session:
                batch = self._batch()
                wishes = self._write(session, batch)
        except Exception as error:  # whatever it is, heartbeats must go on
            self._troubled(error)
            return
        self._written(batch, wishes)

    def _batch(self) -> list[Heard]:
        with self._lock:
            return self._waiting[:BATCH]

    def _write(self, session: Session, batch: list[Heard]) -> Wishes | None:
        return self._rows.write_singly(session, batch) if self._singly else self._rows.write(session, batch)

    def _written(self, batch: list[Heard], wishes: Wishes | None) -> None:
        self.offline_since = None
        self._singly = False
        self._beat_at = time.monotonic()
        if wishes is None:
            self.lost = True
            return
        self.wishes = wishes
        with self._lock:
            del self._waiting[: len(batch)]

    def _troubled(self, error: Exception) -> None:
        if not is_outage(error) and not self._singly:
            log.warning("report_refused", job_id=self.held.job_id, error=type(error).__name__)
            self._singly = True
        elif self.offline_since is None:
            self.offline_since = time.monotonic()
            log.warning("report_delayed", job_id=self.held.job_id, error=type(error).__name__)

    def close(self) -> None:
        """Stop the thread; events still waiting are written by `conclude`."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def conclude(self, verb: Callable[[Session], T]) -> T:
        """Write all that waits, the last of it with `verb`'s change in one transaction, trying until the
        database answers.

        Raises ClaimLost, Offline after `max_offline`, and what `verb` raises that no waiting can mend.
        """
        self.close()
        deadline = time.monotonic() + self.settings.max_offline.total_seconds()
        while not self.lost:
            try:
                with self.database.transaction() as session:
                    batch = self._batch()
                    wishes = self._write(session, batch)
                    if wishes is not None and len(batch) == len(self._waiting):
                        return verb(session)
                self._written(batch, wishes)
            except Exception as error:
                if not is_outage(error):
                    if self._singly:
                        raise
                    self._singly = True
                    continue
                log.warning("conclusion_delayed", job_id=self.held.job_id, error=type(error).__name__)
                if time.monotonic() > deadline:
                    raise Offline(self.held.job_id) from error
                time.sleep(random.uniform(0.5, 1.5))  # noqa: S311
        self.lost = True
        raise ClaimLost(self.held.job_id)
