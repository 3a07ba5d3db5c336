"""What an attempt reports, as rows: the heartbeat first, whose lock on the job fences what follows."""

import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from app.lifecycle import claims, history
from app.lifecycle.claims import Claim, Wishes
from app.lifecycle.history import note
from app.settings import Settings
from app.tables import Attempt, Checkpoint, Job, JsonObject, Metric
from worker import retention
from worker.pace import Pace
from worker.training import events

log = structlog.get_logger()


def is_outage(error: BaseException) -> bool:
    """Whether the database is away, or busy, and the same statement may pass later; else it refuses it."""
    away = (OSError, OperationalError, InterfaceError, InternalError, PoolTimeout)
    return isinstance(error, away) or (isinstance(error, DBAPIError) and error.connection_invalidated)


class Heard(NamedTuple):
    """An event, the columns of the job's row that it changes, and the id of its line in the history: it stays
    one line where the answer to a commit is lost and all of it is written again."""

    event: events.Event
    changes: JsonObject
    line_id: str


class Rows:
    """Writes events under one claim. `model_name` names its checkpoints, of which `keep` stay."""

    model_name: str
    keep: int

    def __init__(self, settings: Settings, held: Claim) -> None:
        self.settings, self.held = settings, held
        self.crashes = held.attempt  # this attempt included, since the newest checkpoint
        self._pace = Pace()
        self._progress: JsonObject = {}

    def hear(self, event: events.Event) -> Heard:
        """To be called once an event, when it comes: how fast the run goes is measured here."""
        return Heard(event, self._pace.hear(event, time.monotonic()), history.new_id())

    def write(self, session: Session, batch: Sequence[Heard]) -> Wishes | None:
        """All of a batch. None: the claim is lost, and nothing was written."""
        for heard in batch:
            self._progress.update(heard.changes)
        wishes = claims.beat(session, self.held, self.settings.lease, dict(self._progress))
        if wishes is None:
            return None
        self._write_metrics(session, [heard.event for heard in batch])
        for heard in batch:
            self._write_event(session, heard)
        return wishes

    def write_singly(self, session: Session, batch: Sequence[Heard]) -> Wishes | None:
        """Event by event, leaving out what the database refuses: one bad value may not hold up the rest."""
        self._progress.clear()
        wishes = claims.beat(session, self.held, self.settings.lease, {})
        for heard in batch if wishes is not None else ():
            event = heard.event
            try:
                with session.begin_nested():
                    self.write(session, [heard])
            except Exception as error:
                if is_outage(error):
                    raise
                self._progress.clear()
                log.exception("event_refused", job_id=self.held.job_id, event_kind=event.event)
                message = (
                    f"An event of the trainer ({event.event}) could not be kept: {type(error).__name__}."
                )
                tell = partial(note, session, self.held.job_id, event_id=heard.line_id)
                tell("warn", "event_refused", message)
        return wishes

    def _write_metrics(self, session: Session, batch: Sequence[events.Event]) -> None:
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

    def _write_event(self, session: Session, heard: Heard) -> None:
        job_id, event = self.held.job_id, heard.event
        tell = partial(note, session, job_id, event_id=heard.line_id)
        match event:
            case events.Prepared():
                session.execute(update(Job).where(Job.id == job_id).values(resolved=event.recipe))
                memory = event.device_memory_bytes
                self._write_attempt(session, {"device": event.device, "device_memory_bytes": memory})
                tell("info", "prepared", _describe(event), _facts(event))
            case events.Notice():
                tell(event.level, event.code, event.message, event.data)
            case events.Evaluated():
                message = f"Step {event.step}: validation loss {_number(event.loss)}{_won(event)}"
                tell("info", "evaluated", message, _facts(event), kind="metrics")
            case events.Sampled():
                share = f"{event.ended_share:.0%} of the samples ended by themselves"
                tell("info", "sampled", f"Step {event.step}: {share}.", _facts(event))
            case events.Saved():
                self._write_checkpoint(session, event)
                tell("info", "checkpoint", f"Checkpoint at step {event.step}.", {"step": event.step})
                self._write_attempt(session, {"tokens_per_second": self._pace.tokens_per_second})
            case events.Step() if self._pace.tells(event):
                message = f"Step {event.step}: training loss {_number(event.loss)}{_won(event)}"
                data = {"step": event.step, "train_loss": event.loss, "learning_rate": event.learning_rate}
                data |= {f"train_reward_{name}": value for name, value in (event.rewards or {}).items()}
                tell("info", "step", message, data, kind="metrics")
            case _:
                pass

    def _write_attempt(self, session: Session, values: JsonObject) -> None:
        mine = update(Attempt).where(Attempt.job_id == self.held.job_id, Attempt.epoch == self.held.epoch)
        session.execute(mine.values(values))

    def _write_checkpoint(self, session: Session, event: events.Saved) -> None:
        job_id, epoch = self.held.job_id, self.held.epoch
        furthest = session.scalar(select(func.max(Checkpoint.step)).where(Checkpoint.job_id == job_id))
        if furthest is None or event.step > furthest:
            claims.progressed(session, self.held)
            self.crashes = 1
        if event.best:
            session.execute(update(Checkpoint).where(Checkpoint.job_id == job_id).values(best=False))
        values = {
            "epoch": epoch,
            "key": f"jobs/{job_id}/e{epoch}/checkpoints/step-{event.step}",
            "manifest_sha256": event.manifest_sha256,
            "bytes": event.bytes,
            "metrics": event.metrics,
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
            # A step trained again after a crash is saved again: the same bytes under the new epoch. What lay
            # under the old one has no row any more, and app.litter removes it.
            .on_conflict_do_update(index_elements=["job_id", "step"], set_=values)
        )
        retention.retire(session, job_id, self.keep)


def _columns(event: events.Step | events.Evaluated) -> JsonObject:
    if isinstance(event, events.Evaluated):
        return {
            "epoch_progress": event.epoch,
            "valid_loss": event.loss,
            "valid_perplexity": event.perplexity,
            "valid_accuracy": event.accuracy,
            **{f"valid_reward_{name}": value for name, value in (event.rewards or {}).items()},
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
        **{f"reward_{name}": value for name, value in (event.rewards or {}).items()},
    }


def _facts(event: events.Event) -> JsonObject:
    known = {name: value for name, value in vars(event).items() if name != "recipe"}
    return {name: value for name, value in known.items() if (name, value) != ("rewards", None)}


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"


def _won(event: events.Step | events.Evaluated) -> str:
    accuracy = (event.rewards or {}).get("accuracy")
    return "" if accuracy is None else f", {accuracy:.0%} of the pairs in the right order"


def _describe(event: events.Prepared) -> str:
    return (
        f"{event.examples:,} examples with {event.trained_tokens:,} trained tokens an epoch;"
        f" {event.total_steps:,} steps on {event.device} in {event.precision}."
    )
