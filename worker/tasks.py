"""`train(job_id)`: the story of one attempt, on one screen."""

import contextlib
import queue
import signal
import time
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.lifecycle import claims, turns
from app.lifecycle.claims import Claim, JobError
from app.model_folder import UnusableModel
from app.storage import StoreAway
from worker import order, outcome, publish, room, spread
from worker.carrier import Carrier
from worker.hub import HubUnreachable
from worker.inputs import Inputs
from worker.integrations import reporting
from worker.integrations.follower import Follower
from worker.launch import FINISHED, STOPPED, Trainer
from worker.outcome import Asked
from worker.patience import patiently
from worker.record import ClaimLost, Offline, Recorder
from worker.runtime import Runtime
from worker.spans import Spans
from worker.training import events
from worker.training.manifest import Damaged

log = structlog.get_logger()
LOOK_EVERY = 0.2  # seconds between looks at wishes while the trainer is silent
WARM_AGAIN_AFTER = 20.0  # seconds of training before the next trainer may import beside it


def train(runtime: Runtime, job_id: str) -> bool:
    """Claim a job, train it, and leave its row saying what became of it. Whether there was one."""
    runtime.heard()
    if runtime.draining.is_set():
        return False
    try:
        held = runtime.claim(job_id)
    except (SQLAlchemyError, OSError) as error:
        log.warning("not_claimed", job_id=job_id, error=type(error).__name__)  # it is announced again
        return False
    if held is None:
        log.info("nothing_to_claim", job_id=job_id)
        return False
    log.info("claimed", job_id=held.job_id, epoch=held.epoch, attempt=held.attempt)
    runtime.held.add(held)
    try:
        _Attempt(runtime, held).run()
    except (ClaimLost, Offline) as error:
        # Somebody else has the job, or will have it once the database is back and the lease is over.
        log.warning("attempt_abandoned", job_id=held.job_id, epoch=held.epoch, reason=type(error).__name__)
    finally:
        runtime.held.discard(held)
        runtime.heard()
        runtime.trainers.prepare()
    return True


def train_all(runtime: Runtime, job_id: str) -> None:
    """One job after another, until none is left that fits: with one slot Celery takes a message a second, and
    a queue that is not empty needs no knock."""
    while train(runtime, job_id):
        if runtime.settings.worker_slots > 1 and not runtime.draining.is_set():
            # The end of a large one may make room for several.
            with contextlib.suppress(SQLAlchemyError, OSError), runtime.database.transaction() as session:
                turns.knock_again(session, runtime.settings.worker_slots)


class _Attempt:
    """One claim, from its order to its outcome."""

    def __init__(self, runtime: Runtime, held: Claim) -> None:
        self.runtime, self.held, self.settings = runtime, held, runtime.settings
        self.asked: Asked | None = None
        self.finished: events.Finished | None = None
        self.failed: events.Failed | None = None
        self.recorder = Recorder(runtime.database, self.settings, held)
        self.carrier = Carrier(runtime.store, self.settings, held, self.recorder)
        self.order: order.Order
        self.spans: Spans
        self.inputs = Inputs(runtime)
        self.follower: Follower | None = None
        self.published: str | None = None  # the model's key

    def run(self) -> None:
        try:
            self._train()
        except (ClaimLost, Offline):
            raise
        except Exception as error:
            # A fault of ours costs the job an attempt; left to its lease it would only be found out later.
            log.exception("attempt_crashed", job_id=self.held.job_id)
            message = f"The worker failed: {type(error).__name__}: {error}"[:1000]
            self._retry(JobError("internal_error", message))
        finally:
            self.carrier.close()
            self.recorder.close()
            self.inputs.close()
            self.runtime.store.clear(order.out_key(self.held))
            if self.follower is not None:
                reporting.end(self.runtime, self.held, self.follower, self.published)
            structlog.contextvars.unbind_contextvars("job_id", "request_id")

    def _train(self) -> None:
        try:
            with self.runtime.database.transaction() as session:
                self.order = order.read(session, self.held, self.runtime.store, self.settings)
            structlog.contextvars.bind_contextvars(job_id=self.held.job_id, request_id=self.order.request_id)
            self.spans = Spans(self.runtime.tracing, self.held, self.order)
            self.recorder.expect(self.order.model_name, self.order.keep)
            line = self._bring()
        except order.MissingFile as error:
            self._fail(JobError("file_not_found", str(error), "training_file"))
        except order.RefusedFinding as error:
            self._fail(JobError("refused_finding", str(error), "training_file"))
        except room.NoRoom as error:
            self._fail(JobError("disk_full", str(error)))
        except StoreAway as error:
            self._retry(JobError("store_unavailable", str(error)))
        except UnusableModel as error:
            message = f"The model {self.order.line['base_name']!r} cannot be used: {error}"
            conclude = self._retry if isinstance(error, HubUnreachable) else self._fail
            conclude(JobError("model_unavailable", message, "model"))
        else:
            trainer = self._take_trainer(line) if line is not None else None
            if trainer is None or line is None:
                self._conclude(STOPPED, [])
            else:
                self._run_trainer(trainer, line)

    def _fail(self, error: JobError) -> None:
        self.recorder.conclude(lambda session: claims.fail(session, self.held, error))

    def _retry(self, error: JobError) -> None:
        delay = outcome.retry_delay(self.settings, self.recorder.crashes)
        self.recorder.conclude(lambda session: claims.retry(session, self.held, error, delay))

    def _bring(self) -> dict[str, Any] | None:
        """What the trainer is told, once all of it is on this machine; None when something else was asked for
        before that."""
        line = self.inputs.bring(self.order, lambda: self._wish() is not None)
        if line is not None and line["revision"] is not None and self.order.revision is None:
            # Told before the trainer can say anything: a later attempt believes the first that says so.
            message = f"The base model is the hub's commit {line['revision']}."
            self.recorder.add(events.Notice("info", "base_model", message, {"revision": line["revision"]}))
        return line

    def _take_trainer(self, line: dict[str, Any]) -> Trainer | None:
        """A trainer; None when something else was asked for before one could be started."""
        devices = int(line["recipe"].get("num_devices", 1))
        start = spread.starter(devices, line, self.runtime.cell)
        started = self.runtime.trainers.start(start) if devices > 1 else None
        while self._wish() is None:
            with contextlib.suppress(queue.Empty):
                return (started or self.runtime.trainers).take(LOOK_EVERY)
        if started:
            started.give_up()
        return None

    def _run_trainer(self, trainer: Trainer, line: dict[str, Any]) -> None:
        log.info("training", job_id=self.held.job_id, pid=trainer.pid)
        try:
            self.follower = reporting.follow(self.runtime, self.held, self.order)
            trainer.begin(line)
            self.spans.end("prepare")
            self._supervise(trainer)
        except BaseException:
            trainer.signal(signal.SIGKILL)
            raise
        finally:
            code = trainer.end()
        self._conclude(code, list(trainer.last_lines))

    def _wish(self) -> Asked | None:
        """Why the trainer should stop now, if it should; what was asked first stays."""
        if self.recorder.lost:
            self.asked = Asked.LOST
        elif self.asked is None:
            if self.recorder.wishes.cancel:
                self.asked = Asked.CANCEL
            elif self.recorder.wishes.pause:
                self.asked = Asked.PAUSE
            elif self.recorder.wishes.give_way:
                self.asked = Asked.GIVE_WAY
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
            case events.Saved():
                self.carrier.take(event)
                return
            case events.Step():
                self.spans.step()
            case _:
                pass
        self.recorder.add(event)
        if self.follower is not None:
            self.follower.hear(event)

    def _conclude(self, code: int, last_lines: list[str]) -> None:
        log.info("attempt_ended", job_id=self.held.job_id, code=code, asked=self.asked)
        if self.asked is Asked.LOST:
            raise ClaimLost(self.held.job_id)
        self.carrier.settle()
        if self.finished is not None and code == FINISHED:
            self.spans.end("train")
            self._publish(self.finished)
            self.spans.end("publish")
            return
        if self.asked is None and code == FINISHED:
            code = 1  # it left without a model and without a word: a crash
        self.recorder.conclude(
            lambda session: outcome.leave(
                session,
                self.held,
                self.settings,
                self.asked,
                code,
                self.failed,
                last_lines,
                self.recorder.crashes,
            )
        )

    def _publish(self, finished: events.Finished) -> None:
        try:
            model = patiently(
                lambda: publish.adopt(self.runtime.store, self.held, finished),
                self.settings,
                lambda: self.recorder.lost,
            )
        except (Damaged, OSError) as error:
            self._retry(JobError("publish_failed", f"The model could not be published: {error}"))
            return
        self.published = model.key
        # Should the claim be lost the folder stays: an answer that was lost is not a transaction that was,
        # and the row may stand. What has no row is removed by app.litter.
        self.recorder.conclude(
            lambda session: publish.announce(
                session,
                self.runtime.store,
                self.held,
                self.order.model_name,
                self.order.base,
                self.order.owner,
                model,
                finished.trained_tokens,
            )
        )
