"""Checkpoints on their way into the store, beside the training: one is made known only when it is there.

Where the store is a folder of this machine the trainer has written it there, and it is known at once. Into a
bucket they are taken in a thread of their own, in the order in which they were saved.
"""

import queue
import threading
from functools import partial

import structlog

from app.lifecycle.claims import Claim
from app.settings import Settings
from app.storage import Store
from worker.order import out_key
from worker.patience import patiently
from worker.record import Recorder
from worker.training import manifest
from worker.training.events import Notice, Saved

log = structlog.get_logger()
LOOK_EVERY = 0.2  # seconds


class Carrier:
    """Of one attempt. The recorder hears of a checkpoint after this has seen to it."""

    def __init__(self, store: Store, settings: Settings, held: Claim, recorder: Recorder) -> None:
        self._store, self._settings, self._recorder = store, settings, recorder
        self._key = f"{out_key(held)}/checkpoints"
        self._best: int | None = None
        self._closed = False
        self._waiting: queue.SimpleQueue[Saved | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if store.place(self._key) is None:
            self._thread = threading.Thread(target=self._run, name=f"carry-{held.job_id}", daemon=True)
            self._thread.start()

    def take(self, event: Saved) -> None:
        """Returns at once."""
        if self._thread is None:
            self._recorder.add(event)
        else:
            self._waiting.put(event)

    def settle(self) -> None:
        """Wait until all that was saved is in the store and known, or the claim is lost."""
        self._waiting.put(None)
        while self._thread is not None and self._thread.is_alive() and not self._recorder.lost:
            self._thread.join(LOOK_EVERY)

    def close(self) -> None:
        """Carry no more: the attempt is over."""
        self._closed = True
        self._waiting.put(None)

    def _given_up(self) -> bool:
        return self._closed or self._recorder.lost

    def _run(self) -> None:
        while not self._given_up() and (event := self._waiting.get()) is not None:
            try:
                patiently(partial(self._carry, event), self._settings, self._given_up)
            except Exception as error:
                # It costs this checkpoint, not the run: the next one is as good.
                log.warning("checkpoint_not_stored", step=event.step, error=str(error))
                message = f"The checkpoint at step {event.step} could not be stored: {error}"
                self._recorder.add(Notice("error", "checkpoint_not_stored", message, {"step": event.step}))
            else:
                self._recorder.add(event)
                self._thin(event)

    def _carry(self, event: Saved) -> None:
        """Raises manifest.Damaged for what is not the folder that the trainer stated, OSError."""
        key = f"{self._key}/step-{event.step}"
        folder = self._store.scratch(key)
        if manifest.verify(folder) != event.manifest_sha256:
            raise manifest.Damaged(f"{manifest.NAME}: not the one that the trainer stated")
        self._store.adopt(folder, key)

    def _thin(self, event: Saved) -> None:
        """What this machine needs no more: all before this one but the best, which may be published."""
        if event.best:
            self._best = event.step
        for step, path in manifest.checkpoints(self._store.scratch(self._key)):
            if step < event.step and step != self._best:
                manifest.discard(path)
