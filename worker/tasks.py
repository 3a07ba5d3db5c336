"""`train(job_id)`: the story of one attempt, on one screen."""

import queue
import signal
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.catalogue import UnusableModel
from app.database import WorkerDatabase
from app.lifecycle import claims
from app.lifecycle.claims import Claim, JobError
from app.settings import Settings
from app.storage import Store
from worker import order, outcome, publish
from worker.launch import FINISHED, Trainer, WarmTrainers
from worker.outcome import Asked
from worker.record import ClaimLost, Offline, Recorder
from worker.training import events
from worker.training.manifest import Damaged

log = structlog.get_logger()
LOOK_EVERY = 0.2  # seconds between looks at wishes while the trainer is silent
WARM_AGAIN_AFTER = 20.0  # seconds of training before the next trainer may import beside it


@dataclass
class Runtime:
    """What every attempt of this worker process shares."""

    settings: Settings
    database: WorkerDatabase
    store: Store
    trainers: WarmTrainers
    worker: str
    draining: threading.Event = field(default_factory=threading.Event)
    busy: int = 0


def train(runtime: Runtime, job_id: str) -> None:
    """Claim the job if it is there to be had, train it, and leave its row saying what became of it."""
    if runtime.draining.is_set():
        return
    with runtime.database.transaction() as session:
        held = claims.claim(session, job_id, runtime.worker, runtime.settings.lease)
    if held is None:
        log.info("nothing_to_claim", job_id=job_id)
        return
    log.info("claimed", job_id=job_id, epoch=held.epoch, attempt=held.attempt)
    runtime.busy += 1
    try:
        _Attempt(runtime, held).run()
    except (ClaimLost, Offline) as error:
        # Somebody else has the job, or will have it once the database is back and the lease is over.
        log.warning("attempt_abandoned", job_id=job_id, epoch=held.epoch, reason=type(error).__name__)
    finally:
        runtime.busy -= 1
        runtime.trainers.prepare()


class _Attempt:
    """One claim, from its order to its outcome."""

    def __init__(self, runtime: Runtime, held: Claim) -> None:
        self.runtime, self.held, self.settings = runtime, held, runtime.settings
        self.asked: Asked | None = None
        self.finished: events.Finished | None = None
        self.failed: events.Failed | None = None
        self.recorder: Recorder

    def run(self) -> None:
        try:
            with self.runtime.database.transaction() as session:
                self.order = order.read(session, self.held, self.runtime.store, self.settings)
        except order.MissingFile as error:
            self._fail_early(JobError("file_not_found", str(error), "training_file"))
            return
        except SQLAlchemyError as error:
            raise Offline(self.held.job_id) from error
        self.recorder = Recorder(
            self.runtime.database, self.settings, self.held, self.order.model_name, self.order.keep
        )
        try:
            self._train()
        except BaseException:
            self.recorder.close()
            raise

    def _fail_early(self, error: JobError) -> None:
        with self.runtime.database.transaction() as session:
            claims.fail(session, self.held, error)

    def _train(self) -> None:
        try:
            folder = self._base_folder()
        except UnusableModel as error:
            message = f"The model {self.order.line['base_name']!r} cannot be used: {error}"
            self.recorder.conclude(
                lambda session: claims.fail(
                    session, self.held, JobError("model_unavailable", message, "model")
                )
            )
            return
        if folder is None:
            self._conclude(FINISHED, [])
            return
        trainer = self.runtime.trainers.take()
        log.info("training", job_id=self.held.job_id, pid=trainer.pid)
        try:
            trainer.begin({**self.order.line, "model": str(folder)})
            self._supervise(trainer)
        except BrokenPipeError:
            log.warning("trainer_died_waiting", pid=trainer.pid)
        except BaseException:
            trainer.signal(signal.SIGKILL)
            raise
        finally:
            code = trainer.end()
        self._conclude(code, list(trainer.last_lines))

    def _base_folder(self) -> Path | None:
        """The base model's folder; None when something else was asked for while it was being fetched."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        future: Future[Path] = pool.submit(order.base_folder, self.order.source, self.settings)
        pool.shutdown(wait=False)
        while not future.done():
            if self._wish() is not None:
                return None
            time.sleep(LOOK_EVERY)
        return future.result()

    def _wish(self) -> Asked | None:
        """Why the trainer should stop now, if it should; what was asked first stays."""
        if self.recorder.lost:
            self.asked = Asked.LOST
        elif self.asked is None:
            if self.recorder.wishes.cancel:
                self.asked = Asked.CANCEL
            elif self.recorder.wishes.pause:
                self.asked = Asked.PAUSE
            elif self.runtime.draining.is_set():
                self.asked = Asked.DRAIN
            elif self.recorder.too_long_offline:
                self.asked = Asked.OFFLINE
        return self.asked

    def _supervise(self, trainer: Trainer) -> None:
        """Pass on what the trainer says until it says no more; stop it when that is wished or it hangs."""
        began = heard = time.monotonic()
        kill_at: float | None = None
        warmed = False
        while True:
            try:
                event = trainer.next_event(LOOK_EVERY)
            except queue.Empty:
                pass
            else:
                if event is None:
                    return
                heard = time.monotonic()
                self._hear(event)
            at = time.monotonic()
            if not warmed and at - began > WARM_AGAIN_AFTER:
                warmed = True
                self.runtime.trainers.prepare()
            if self.asked is None and at - heard > self.settings.stall.total_seconds():
                self.asked = Asked.STALL
            if self._wish() is Asked.LOST:
                trainer.signal(signal.SIGKILL)
            elif self.asked is not None and kill_at is None:
                log.info("stopping", job_id=self.held.job_id, reason=self.asked.value)
                trainer.stop()
                kill_at = at + self.settings.stop_grace.total_seconds()
            elif kill_at is not None and at > kill_at:
                trainer.signal(signal.SIGKILL)

    def _hear(self, event: events.Event) -> None:
        match event:
            case events.Finished():
                self.finished = event
            case events.Failed():
                self.failed = event
            case events.Ready():
                return
            case _:
                pass
        self.recorder.add(event)

    def _conclude(self, code: int, last_lines: list[str]) -> None:
        log.info("attempt_ended", job_id=self.held.job_id, code=code, asked=self.asked)
        if self.asked is Asked.LOST:
            self.recorder.close()
            raise ClaimLost(self.held.job_id)
        if self.finished is not None and code == FINISHED:
            self._publish(self.finished)
            return
        if self.asked is None and code == FINISHED:
            code = 1  # it left without a model and without a word: a crash
        self.recorder.conclude(
            lambda session: outcome.leave(
                session, self.held, self.settings, self.asked, code, self.failed, last_lines
            )
        )

    def _publish(self, finished: events.Finished) -> None:
        try:
            model = publish.adopt(self.runtime.store, self.held, finished)
        except (Damaged, OSError) as error:
            crash = JobError("publish_failed", f"The model could not be published: {error}")
            delay = outcome.retry_delay(self.settings, self.held.attempt)
            self.recorder.conclude(lambda session: claims.retry(session, self.held, crash, delay))
            return
        try:
            self.recorder.conclude(
                lambda session: publish.announce(
                    session,
                    self.held,
                    self.order.model_name,
                    self.order.base,
                    self.order.owner,
                    model,
                    finished.trained_tokens,
                )
            )
        except ClaimLost:
            self.runtime.store.delete(model.key)
            raise
