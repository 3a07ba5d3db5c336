"""What every attempt of a worker process shares, and the one place where it claims."""

import threading
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta

from app.database import WorkerDatabase
from app.lifecycle import turns
from app.lifecycle.claims import Claim
from app.lifecycle.offers import MISSED, Offer
from app.settings import Settings
from app.storage import Store
from app.tracing import Tracing
from worker.cells import Cell
from worker.launch import WarmTrainers


@dataclass
class Runtime:
    """What every attempt of this worker process shares."""

    settings: Settings
    database: WorkerDatabase
    store: Store
    trainers: WarmTrainers
    worker: str
    cell: Cell | None = None
    offer: Offer = field(default_factory=lambda: Offer(""))
    draining: threading.Event = field(default_factory=threading.Event)
    held: set[Claim] = field(default_factory=set)
    tracing: Tracing = field(init=False)
    _free_since: float = field(default_factory=time.monotonic)
    _claiming: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.tracing = Tracing(self.settings, "worker")

    def claim(self, job_id: str) -> Claim | None:
        """The first job in the order of service that fits here, whichever the message names.

        Raises SQLAlchemyError, OSError. One claim at a time: each counts what the one before it takes.
        """
        settings = self.settings
        given = replace(self.offer, worker=self.worker), settings.lease, MISSED * settings.heartbeat
        with self._claiming, self.database.transaction() as session:
            return turns.answer_knock(session, job_id, *given)

    def heard(self) -> None:
        """A message came, or a slot became free: from here on silence counts."""
        self._free_since = time.monotonic()

    def idle_for(self, time_span: timedelta) -> bool:
        """Whether a slot has been free, and no message has come, for so long."""
        silent = time.monotonic() - self._free_since
        return len(self.held) < self.settings.worker_slots and silent > time_span.total_seconds()
