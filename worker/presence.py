"""The worker's own row, written at every heartbeat; and the watch over its ears.

Celery over Redis can go deaf: on a connection of which one end is gone it waits for ever, alive to everyone
who looks. The database knows better: jobs are due and announced, a slot is free, and no message comes. Then
the process hands back what it trains and ends with code 70, for whatever keeps it running to start it anew.
"""

import math
import os
import socket
import threading
import time
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import structlog
from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert

from app.lifecycle import announcements
from app.tables import Worker, now
from worker import devices
from worker.runtime import Runtime

log = structlog.get_logger()
DEAF = 70  # EX_SOFTWARE
CAREFUL = timedelta(seconds=60)  # kombu notices most dead connections within 45
LAST_ROWS = 15.0  # seconds beyond the trainers' own grace
DEVICES_EVERY = 30.0  # seconds; asking the driver takes up to one of them


class Presence:
    """A thread for as long as the process lives."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.settings = runtime, runtime.settings
        # Two announcements, each of which a broken connection may have swallowed, and then some.
        self.patience = max(2 * self.settings.redispatch, CAREFUL)
        self._devices: list[dict[str, Any]] = []
        self._devices_at = -math.inf
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Take the row away: nobody needs to wait for it to grow stale."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(5)  # what it writes now would outlive the row's deletion
        try:
            with self.runtime.database.transaction() as session:
                session.execute(delete(Worker).where(Worker.id == self.runtime.worker))
        except Exception as error:
            log.warning("presence_not_ended", error=type(error).__name__)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                deaf = self.tell()
            except Exception as error:  # this thread must outlive whatever the database does
                log.warning("presence_not_told", error=type(error).__name__)
            else:
                if deaf:
                    self._leave()
            self._ended.wait(self.settings.heartbeat.total_seconds())

    def tell(self) -> bool:
        """Write the row; whether messages must have been missed."""
        runtime = self.runtime
        values = {
            "host": socket.gethostname(),
            "slots": self.settings.worker_slots,
            "busy": len(runtime.held),
            "version": version("finetuned"),
            "draining": runtime.draining.is_set(),
            "devices": self._look(),
            "labels": sorted(runtime.offer.labels),
            "memory_bytes": runtime.offer.memory,
            "budget_bytes": runtime.offer.budget,
        }
        row = insert(Worker).values(id=runtime.worker, **values)
        with runtime.database.transaction() as session:
            session.execute(row.on_conflict_do_update(index_elements=["id"], set_={**values, "seen_at": now}))
            if runtime.draining.is_set() or not runtime.idle_for(self.patience):
                return False
            given = self.patience, self.settings.redispatch, runtime.offer
            return announcements.waits_unheard(session, *given)

    def _look(self) -> list[dict[str, Any]]:
        if time.monotonic() - self._devices_at > DEVICES_EVERY:
            self._devices, self._devices_at = devices.look(), time.monotonic()
        return self._devices

    def _leave(self) -> None:
        log.error("deaf_to_the_broker", worker=self.runtime.worker)
        self.runtime.draining.set()
        deadline = time.monotonic() + self.settings.stop_grace.total_seconds() + LAST_ROWS
        while self.runtime.held and time.monotonic() < deadline:
            time.sleep(0.1)
        self.runtime.trainers.close()
        # Celery's own shutdown may be what hangs.
        os._exit(DEAF)
