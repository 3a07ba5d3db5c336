"""What the rows say about the service, as Prometheus wants it: the same whichever process is asked.

A figure is one SELECT of (label's value, value); all of them travel to the database as one statement. Every
SELECT is bounded by an index or by the number of rows of one small state: a scrape of 10,000 jobs takes
milliseconds. Labels are states of ours, never what a user wrote. Times are `now()`, the transaction's: the
volatile clock of `app.tables.now` would keep PostgreSQL from using an index.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import (
    ColumnElement,
    Double,
    Select,
    SQLColumnExpression,
    String,
    case,
    cast,
    func,
    literal,
    null,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.orm import Session, aliased

from app.lifecycle.room import held_back
from app.settings import Settings
from app.tables import Attempt, Checkpoint, File, Job, Metric, Model, Worker
from app.webhooks.rows import WebhookDelivery

PREFIX = "finetuned_"
STATES = ("validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled")
RECENT = timedelta(hours=1)
SHARES = (0.5, 0.9, 1.0)
MISSED = 3  # heartbeats after which a worker counts as silent
at = func.now()


@dataclass(frozen=True)
class Figure:
    """`values` are those of `label` that are told even where no row has them, as 0."""

    name: str
    meaning: str
    query: Select[Any]
    label: str | None = None
    values: Sequence[str] = ()


def _seconds(span: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.extract("epoch", span)


def _row(value: ColumnElement[Any], label: SQLColumnExpression[Any] | None = None) -> Select[Any]:
    return select((null() if label is None else label).label("label"), value.label("value"))


def figures(settings: Settings) -> list[Figure]:
    fresh = at - MISSED * settings.heartbeat
    return [*_jobs(settings), *_training(), *_workers(fresh), *_webhooks(), *_storage()]


def _jobs(settings: Settings) -> Iterable[Figure]:
    due = (Job.status == "queued", Job.not_before <= at)
    running = Job.status == "running"
    yield Figure(
        "jobs", "Jobs in each state", _row(func.count(), Job.status).group_by(Job.status), "status", STATES
    )
    yield Figure("queue_jobs", "Queued jobs that may start now", _row(func.count()).where(*due))
    oldest = (
        select(Job.not_before).where(*due, ~held_back()).order_by(Job.not_before).limit(1).scalar_subquery()
    )
    yield Figure(
        "queue_oldest_seconds",
        "How long the job that waits longest could have been started; its key's limit does not count",
        _row(func.coalesce(_seconds(at - oldest), 0)),
    )
    # Announced again every `redispatch`: announced and due for two of them, nobody heard of it.
    unheard = Job.not_before < at - 2 * settings.redispatch
    yield Figure(
        "queue_unclaimed_jobs",
        "Jobs that workers were told of twice and that none has claimed; with free slots the broker loses"
        " messages",
        _row(func.count()).where(*due, unheard, Job.dispatched_at.is_not(None)),
    )
    yield Figure(
        "running_jobs_expired",
        "Running jobs whose lease is over: no worker was heard of",
        _row(func.count()).where(running, Job.lease_expires_at < at),
    )
    beat = _seconds(at - func.min(Job.lease_expires_at) + settings.lease)
    yield Figure(
        "running_jobs_beat_age_seconds",
        "Age of the oldest heartbeat of a running job",
        _row(func.coalesce(beat, 0)).where(running),
    )


def _training() -> Iterable[Figure]:
    """Of jobs that run now: their latest step. Of waits: the jobs that began within the last hour."""
    latest = aliased(Metric)
    newest = select(func.max(Metric.step)).where(Metric.job_id == Job.id).correlate(Job).scalar_subquery()
    steps = (
        select(
            latest.tokens_per_second.label("speed"),
            (latest.tokens / func.nullif(latest.tokens_per_second, 0)).label("seconds"),
            latest.memory_bytes.label("memory"),
            latest.created_at.label("told_at"),
        )
        .select_from(Job)
        .join(latest, (latest.job_id == Job.id) & (latest.step == newest))
        .where(Job.status == "running")
        .cte("steps")  # read once for all five
    )
    yield Figure(
        "training_tokens_per_second",
        "Tokens that all running jobs train on in a second, by their latest steps",
        _row(func.coalesce(func.sum(steps.c.speed), 0)),
    )
    for name, which in (("mean", func.avg), ("longest", func.max)):
        yield Figure(
            f"training_step_{name}_seconds",
            f"The {name} of the latest steps of the running jobs",
            _row(which(steps.c.seconds)),
        )
    yield Figure(
        "training_silence_seconds",
        "Since when the running job that is silent for longest has finished no step",
        _row(_seconds(at - func.min(steps.c.told_at))),
    )
    yield Figure(
        "training_memory_bytes",
        "Memory that the trainers held at most, all running jobs together, by their latest steps",
        _row(func.coalesce(func.sum(steps.c.memory), 0)),
    )
    begun = (Job.started_at > at - RECENT,)
    first = aliased(Metric)
    waits = select(_seconds(Job.started_at - Job.created_at).label("wait")).where(*begun)
    stepped = (
        select(_seconds(first.created_at - Job.created_at).label("wait"))
        .select_from(Job)
        .join(first, (first.job_id == Job.id) & (first.step == 1))
        .where(*begun)
    )
    yield _shares("job_start_wait_seconds", "From create to the claim by a worker", waits)
    yield _shares("job_first_step_wait_seconds", "From create to the end of the first step", stepped)


def _shares(name: str, meaning: str, waits: Select[Any]) -> Figure:
    wait = waits.subquery().c.wait
    # Two functions that give rows advance together; without a wait the second gives null, which is not told.
    query = select(
        func.unnest(array([f"{share:g}" for share in SHARES])),
        func.unnest(func.percentile_cont(array(list(SHARES))).within_group(wait)),
    )
    return Figure(name, f"{meaning}: quantiles of jobs that started within the last hour", query, "quantile")


def _workers(fresh: ColumnElement[Any]) -> Iterable[Figure]:
    alive = Worker.seen_at > fresh
    state = case((~alive, "silent"), (Worker.draining, "draining"), else_="ready")
    yield Figure(
        "workers",
        "Workers that report, those that are about to leave, and those that fell silent within a day",
        _row(func.count(), state).group_by(state),
        "state",
        ("ready", "draining", "silent"),
    )
    ready = (alive, Worker.draining.is_(False))
    yield Figure(
        "worker_slots",
        "Jobs that the ready workers can train at a time",
        _row(_sum(Worker.slots)).where(*ready),
    )
    yield Figure("worker_slots_busy", "Of these, taken", _row(_sum(Worker.busy)).where(*ready))
    yield Figure(
        "worker_heartbeat_age_seconds",
        "How long ago the latest heartbeat of any worker was; absent where none was heard of within a day",
        _row(_seconds(at - func.max(Worker.seen_at))),
    )
    yield Figure(
        "accelerator_memory_bytes",
        "Memory of the devices that running jobs train on, where it is known",
        _row(_sum(Attempt.device_memory_bytes)).where(
            Attempt.job_id == Job.id, Attempt.epoch == Job.epoch, Job.status == "running"
        ),
    )


def _webhooks() -> Iterable[Figure]:
    pending, failed = WebhookDelivery.status == "pending", WebhookDelivery.status == "failed"
    yield Figure(
        "webhook_deliveries_pending",
        "Deliveries that are still to be made",
        _row(func.count()).where(pending),
    )
    yield Figure(
        "webhook_oldest_pending_seconds",
        "How long the delivery that waits longest has been tried; endpoints that were switched off count too",
        _row(func.coalesce(_seconds(at - func.min(WebhookDelivery.created_at)), 0)).where(pending),
    )
    yield Figure(
        "webhook_deliveries_failed",
        "Deliveries given up that are still in the log",
        _row(func.count()).where(failed),
    )


def _storage() -> Iterable[Figure]:
    tables: dict[str, type[File] | type[Checkpoint] | type[Model]] = {
        "files": File,
        "checkpoints": Checkpoint,
        "models": Model,
    }
    parts = [
        select(
            literal(kind).label("kind"), func.count().label("objects"), _sum(table.bytes).label("bytes")
        ).where(table.deleted_at.is_(None))
        for kind, table in tables.items()
    ]
    kept = union_all(*parts).cte("kept")
    yield Figure(
        "stored_objects",
        "Files, checkpoints and models that are kept",
        _row(kept.c.objects, kept.c.kind),
        "kind",
        tuple(tables),
    )
    yield Figure("stored_bytes", "Their bytes", _row(kept.c.bytes, kept.c.kind), "kind", tuple(tables))
    yield Figure(
        "database_bytes",
        "Size of the database",
        _row(func.pg_database_size(func.current_database())),
    )


def _sum(column: Any) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column), 0)


class Figures:
    """All of them, their statement built once."""

    def __init__(self, settings: Settings) -> None:
        self._known = figures(settings)
        asked = []
        for place, figure in enumerate(self._known):
            label, value = figure.query.subquery().c
            asked.append(select(literal(place), cast(label, String), cast(value, Double)))
        self._statement = union_all(*asked)

    def read(self, session: Session) -> list[GaugeMetricFamily]:
        """As they are now."""
        found = [dict.fromkeys(figure.values, 0.0) for figure in self._known]
        for place, label, value in session.execute(self._statement):
            if value is not None:
                found[place][label or ""] = value
        return [_family(figure, values) for figure, values in zip(self._known, found, strict=True)]


def _family(figure: Figure, values: dict[str, float]) -> GaugeMetricFamily:
    labels = [figure.label] if figure.label else []
    family = GaugeMetricFamily(PREFIX + figure.name, figure.meaning, labels=labels)
    for label, value in values.items():
        family.add_metric([label] if figure.label else [], value)
    return family
