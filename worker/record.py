"""A trainer's events become rows: batched, in order, under the claim's epoch; the user's wishes come back.

It runs in a thread of its own, so that a slow or absent database never slows training: what cannot be written
waits in memory and is written later, in order. When the claim is lost nothing more is written at all.
"""

import random
import secrets
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.database import WorkerDatabase
from app.lifecycle import claims
from app.lifecycle.claims import Claim, Wishes
from app.lifecycle.history import note
from app.settings import Settings
from app.tables import Checkpoint, Job, JsonObject, Metric
from worker import retention
from worker.pace import Pace
from worker.training import events

log = structlog.get_logger()
T = TypeVar("T")
WRITE_EVERY = 1.0  # seconds: how fresh the numbers are that a user polls
BATCH = 2000  # events in one transaction


class ClaimLost(Exception):
    """Somebody else has the job now."""


class Offline(Exception):
    """The database has been away for longer than `max_offline`."""


class Recorder:
    """Writes what one attempt reports. `model_name` names its checkpoints, of which `keep` stay."""

    def __init__(
        self, database: WorkerDatabase, settings: Settings, held: Claim, model_name: str, keep: int
    ) -> None:
        self.database, self.settings, self.held = database, settings, held
        self.model_name, self.keep = model_name, keep
        self.wishes = Wishes(cancel=False, pause=False)
        self.lost = False
        self.offline_since: float | None = None
        self._waiting: list[events.Event] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._pace = Pace()
        self._progress: JsonObject = {}
        self._beat_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"record-{held.job_id}", daemon=True)
        self._thread.start()

    def add(self, event: events.Event) -> None:
        """Take an event; returns at once."""
        with self._lock:
            self._waiting.append(event)

    @property
    def too_long_offline(self) -> bool:
        since = self.offline_since
        return since is not None and time.monotonic() - since > self.settings.max_offline.total_seconds()

    def _run(self) -> None:
        while not self._closing and not self.lost:
            self._wake.wait(self._delay())
            if not self._closing:
                self._write_once()

    def _delay(self) -> float:
        if self.offline_since is not None:
            return random.uniform(0.5, 1.5)  # noqa: S311  # spreads many workers' reconnects, no secret
        heartbeat = self.settings.heartbeat.total_seconds()
        return min(WRITE_EVERY, heartbeat)

    def _write_once(self) -> None:
        with self._lock:
            batch = self._waiting[:BATCH]
        due = time.monotonic() - self._beat_at >= self.settings.heartbeat.total_seconds()
        if not batch and not due:
            return
        try:
            with self.database.transaction() as session:
                wishes = self._write(session, batch)
        except (SQLAlchemyError, OSError) as error:
            if self.offline_since is None:
                self.offline_since = time.monotonic()
                log.warning("report_delayed", job_id=self.held.job_id, error=type(error).__name__)
            return
        self.offline_since = None
        self._beat_at = time.monotonic()
        if wishes is None:
            self.lost = True
            return
        self.wishes = wishes
        with self._lock:
            del self._waiting[: len(batch)]

    def close(self) -> None:
        """Stop the thread; events still waiting are written by `conclude`."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def conclude(self, verb: Callable[[Session], T]) -> T:
        """Write all that waits and `verb`'s change in one transaction, trying until the database answers.

        Raises ClaimLost, and Offline after `max_offline`.
        """
        self.close()
        deadline = time.monotonic() + self.settings.max_offline.total_seconds()
        while not self.lost:
            try:
                with self.database.transaction() as session:
                    with self._lock:
                        batch = list(self._waiting)
                    if self._write(session, batch) is None:
                        break
                    return verb(session)
            except (SQLAlchemyError, OSError) as error:
                log.warning("conclusion_delayed", job_id=self.held.job_id, error=type(error).__name__)
                if time.monotonic() > deadline:
                    raise Offline(self.held.job_id) from error
                time.sleep(random.uniform(0.5, 1.5))  # noqa: S311
        self.lost = True
        raise ClaimLost(self.held.job_id)

    def _write(self, session: Session, batch: list[events.Event]) -> Wishes | None:
        """The heartbeat first: it takes the row's lock and thereby fences all that follows."""
        for event in batch:
            self._progress.update(self._pace.progress(event))
        wishes = claims.beat(session, self.held, self.settings.lease, dict(self._progress))
        if wishes is None:
            return None
        self._write_metrics(session, batch)
        for event in batch:
            self._write_event(session, event)
        return wishes

    def _write_metrics(self, session: Session, batch: list[events.Event]) -> None:
        # A later event of a step wins, and the columns it does not have stay: one row a step.
        steps: dict[int, JsonObject] = {}
        for event in batch:
            if isinstance(event, events.Step | events.Evaluated):
                steps.setdefault(event.step, {}).update(_columns(event))
        by_shape: dict[tuple[str, ...], list[JsonObject]] = {}
        for step, values in steps.items():
            row = {"job_id": self.held.job_id, "step": step, "epoch": self.held.epoch, **values}
            by_shape.setdefault(tuple(row), []).append(row)
        for shape, rows in by_shape.items():
            statement = insert(Metric)
            changed = {name: statement.excluded[name] for name in shape if name not in ("job_id", "step")}
            session.execute(
                statement.on_conflict_do_update(
                    index_elements=["job_id", "step"],
                    set_=changed,
                    where=Metric.epoch <= statement.excluded.epoch,
                ),
                rows,
            )

    def _write_event(self, session: Session, event: events.Event) -> None:
        job_id = self.held.job_id
        match event:
            case events.Prepared():
                session.execute(update(Job).where(Job.id == job_id).values(resolved=event.recipe))
                note(session, job_id, "info", "prepared", _describe(event), _facts(event))
            case events.Notice():
                note(session, job_id, event.level, event.code, event.message, event.data)
            case events.Evaluated():
                message = f"Step {event.step}: validation loss {_number(event.loss)}"
                note(session, job_id, "info", "evaluated", message, _facts(event), kind="metrics")
            case events.Sampled():
                share = f"{event.ended_share:.0%} of the samples ended by themselves"
                note(session, job_id, "info", "sampled", f"Step {event.step}: {share}.", _facts(event))
            case events.Saved():
                self._write_checkpoint(session, event)
            case events.Step() if self._pace.tells(event):
                message = f"Step {event.step}: training loss {_number(event.loss)}"
                data = {"step": event.step, "train_loss": event.loss, "learning_rate": event.learning_rate}
                note(session, job_id, "info", "step", message, data, kind="metrics")
            case _:
                pass

    def _write_checkpoint(self, session: Session, event: events.Saved) -> None:
        job_id, epoch = self.held.job_id, self.held.epoch
        if event.best:
            session.execute(update(Checkpoint).where(Checkpoint.job_id == job_id).values(best=False))
        values = {
            "epoch": epoch,
            "key": f"jobs/{job_id}/e{epoch}/checkpoints/step-{event.step}",
            "manifest_sha256": event.manifest_sha256,
            "bytes": event.bytes,
            "metrics": {"step": event.step, **event.metrics},
            "best": event.best,
            "deleted_at": None,
        }
        session.execute(
            insert(Checkpoint)
            .values(
                id=f"ftckpt_{secrets.token_hex(12)}",
                job_id=job_id,
                step=event.step,
                name=f"{self.model_name}:ckpt-step-{event.step}",
                **values,
            )
            # A step trained again after a crash is saved again: the same bytes under the new epoch.
            .on_conflict_do_update(index_elements=["job_id", "step"], set_=values)
        )
        note(session, job_id, "info", "checkpoint", f"Checkpoint at step {event.step}.", {"step": event.step})
        retention.retire(session, job_id, self.keep)


def _columns(event: events.Step | events.Evaluated) -> JsonObject:
    if isinstance(event, events.Evaluated):
        return {
            "epoch_progress": event.epoch,
            "valid_loss": event.loss,
            "valid_perplexity": event.perplexity,
            "valid_accuracy": event.accuracy,
        }
    return {
        "epoch_progress": event.epoch,
        "loss": event.loss,
        "learning_rate": event.learning_rate,
        "grad_norm": event.grad_norm,
        "tokens": event.tokens,
        "trained_tokens": event.trained_tokens,
        "tokens_per_second": event.tokens_per_second,
        "memory_bytes": event.memory_bytes,
        "skipped": event.skipped,
    }


def _facts(event: events.Event) -> JsonObject:
    return {name: value for name, value in vars(event).items() if name != "recipe"}


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"


def _describe(event: events.Prepared) -> str:
    return (
        f"{event.examples:,} examples with {event.trained_tokens:,} trained tokens an epoch;"
        f" {event.total_steps:,} steps on {event.device} in {event.precision}."
    )
