"""When a queued job will begin and end, from what earlier ones took: measured, or null.

A job's work is a number of tokens. How fast they go is known from attempts on the same device: those with the
same model say it directly; else those with another model, scaled by parameters (a token costs six floating
point operations a parameter, forwards and backwards). Nothing measured, nothing said.
"""

import heapq
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from sqlalchemy import ARRAY, ColumnElement, String, any_, func, literal, select
from sqlalchemy.orm import Session

from app.guard import everybody
from app.lifecycle import turns
from app.resolution import DEFAULT_EPOCHS
from app.tables import Attempt, File, Job, Worker, now

LOOKED_AHEAD = 500  # queued jobs whose durations are added up; behind them only the position is told
LOOKED_BACK = 50  # attempts
SAMPLE = 5  # attempts whose median counts
Basis = Literal["same_model", "scaled_by_flops"]


class Place(NamedTuple):
    """Where a queued job stands: 1 is next."""

    position: int
    starts_at: datetime | None
    ends_at: datetime | None


@dataclass(frozen=True)
class Work:
    """What is to be done: tokens in all, by a model of so many parameters (None: not known)."""

    source: str
    lora: bool
    tokens: float | None
    parameters: int | None


@dataclass(frozen=True)
class Measured:
    """One attempt of the past."""

    source: str
    lora: bool
    parameters: int
    tokens_per_second: float
    training_file: str
    epoch_tokens: int
    file_bytes: int
    device: str
    device_memory_bytes: int | None


def speed(work: Work, past: Sequence[Measured]) -> tuple[float, Basis] | None:
    """Tokens a second, and what that rests on. `past` is newest first."""
    same = [m.tokens_per_second for m in past if (m.source, m.lora) == (work.source, work.lora)]
    if same:
        return statistics.median(same[:SAMPLE]), "same_model"
    parameters = work.parameters or next((m.parameters for m in past if m.source == work.source), None)
    if not past or not parameters:
        return None
    scaled = [m.tokens_per_second * m.parameters / parameters for m in past if m.lora == work.lora]
    if not scaled:
        return None
    return statistics.median(scaled[:SAMPLE]), "scaled_by_flops"


def seconds(work: Work, past: Sequence[Measured]) -> float | None:
    found = speed(work, past)
    return None if found is None or work.tokens is None else work.tokens / found[0]


def epoch_tokens(source: str, file_id: str, file_bytes: int, past: Sequence[Measured]) -> float | None:
    """Tokens of a file for a model: as counted for an earlier job, or by the bytes of other files."""
    same = [m for m in past if m.source == source]
    for measured in same:
        if measured.training_file == file_id:
            return measured.epoch_tokens
    shares = [m.epoch_tokens / m.file_bytes for m in same if m.file_bytes]
    return file_bytes * statistics.median(shares[:SAMPLE]) if shares else None


def starts(durations: Iterable[float | None], free: Sequence[datetime]) -> list[datetime | None]:
    """When jobs begin that queue for slots which become free at these times; a slot whose end nobody knows
    is not among them and counts as taken for ever, so that a start may come earlier than said."""
    slots = list(free)
    heapq.heapify(slots)
    begun: list[datetime | None] = []
    for duration in durations:
        if not slots:
            begun.append(None)
            continue
        at = heapq.heappop(slots)
        begun.append(at)
        if duration is not None:
            heapq.heappush(slots, at + timedelta(seconds=duration))
    return begun


def past(session: Session) -> list[Measured]:
    """The newest attempts on the device of the newest one."""
    query = (
        select(
            Job.source,
            _said("lora_rank").is_not(None).label("lora"),
            Job.parameters,
            Attempt.tokens_per_second,
            Job.training_file,
            Job.epoch_tokens,
            File.bytes.label("file_bytes"),
            Attempt.device,
            Attempt.device_memory_bytes,
        )
        .join(Job, Job.id == Attempt.job_id)
        .join(File, File.id == Job.training_file)
        .where(
            Attempt.tokens_per_second.is_not(None),
            Attempt.device.is_not(None),
            Job.parameters.is_not(None),
            Job.epoch_tokens.is_not(None),
        )
        .order_by(Attempt.started_at.desc())
        .limit(LOOKED_BACK)
    )
    with everybody(session):  # speeds of a device, whoever trained on it
        rows = session.execute(query).all()
    found = [Measured(**row._mapping) for row in rows]
    return [measured for measured in found if measured.device == found[0].device]


def free_slots(session: Session, fresh: timedelta) -> list[datetime]:
    """When the slots of workers heard of within `fresh` become free, as far as that is known."""
    at = datetime.now(UTC)
    slots = session.scalar(
        select(func.sum(Worker.slots)).where(Worker.seen_at > now - fresh, Worker.draining.is_(False))
    )
    busy = session.scalars(select(Job.estimated_finish).where(Job.status == "running")).all()
    if not slots:
        return []
    idle = max(0, int(slots) - len(busy))
    return [*[at] * idle, *(max(at, finish) for finish in busy if finish is not None)]


def line(session: Session, fresh: timedelta) -> dict[str, Place]:
    """Everybody in the queue with their places; times for the first few hundred. Five statements, whatever
    their number."""
    with everybody(session):  # the queue is everybody's
        order = turns.queued(session)
        places = {job_id: Place(position, None, None) for position, job_id in enumerate(order, 1)}
        if not order:
            return places
        before = past(session)
        ahead = _first(session, order)
        free = free_slots(session, fresh)
    lasting = [seconds(_work(row, before), before) for row in ahead]
    begin = starts(lasting, free)
    for row, duration, at in zip(ahead, lasting, begin, strict=True):
        if at is not None:
            at = max(at, row.not_before)
            ends = None if duration is None else at + timedelta(seconds=duration)
            places[row.id] = Place(places[row.id].position, at, ends)
    return places


def start_of_next(session: Session, fresh: timedelta) -> datetime | None:
    """When a job would begin that were created now."""
    with everybody(session):  # they all begin before it
        before = past(session)
        order = turns.queued(session)
        if len(order) > LOOKED_AHEAD:
            return None
        ahead = _first(session, order)
        free = free_slots(session, fresh)
    lasting = [seconds(_work(row, before), before) for row in ahead]
    return starts([*lasting, 0], free)[-1]


def _first(session: Session, order: Sequence[str]) -> Sequence[Any]:
    """The first few hundred jobs of the queue, in order, with what their duration follows from."""
    ids = order[:LOOKED_AHEAD]
    rows = session.execute(
        select(
            Job.id,
            Job.source,
            Job.training_file,
            Job.not_before,
            Job.step,
            Job.total_steps,
            Job.parameters,
            Job.epoch_tokens,
            _said("lora_rank").is_not(None).label("lora"),
            _said("num_epochs").label("epochs"),
            _said("max_steps").label("max_steps"),
            _said("total_train_batch_size").label("batch"),
            File.bytes.label("file_bytes"),
            File.rows.label("file_rows"),
            File.format.label("file_format"),
        )
        .join(File, File.id == Job.training_file)
        .where(Job.id == any_(literal(ids, ARRAY(String))))
    )
    found = {row.id: row for row in rows}
    return [found[job_id] for job_id in ids if job_id in found]


def _work(row: Any, before: Sequence[Measured]) -> Work:
    """What a queued job has still to do."""
    an_epoch = row.epoch_tokens or epoch_tokens(row.source, row.training_file, row.file_bytes, before)
    epochs = _epochs(row)
    left = 1 - row.step / row.total_steps if row.total_steps else 1.0
    tokens = None if an_epoch is None or epochs is None else an_epoch * epochs * left
    return Work(row.source, row.lora, tokens, row.parameters)


def _epochs(row: Any) -> float | None:
    """Passes over the file; of max_steps they are known only where batch and examples are."""
    if row.max_steps is None:
        return DEFAULT_EPOCHS if row.epochs == "auto" else float(row.epochs)
    if row.batch == "auto" or row.file_format == "text" or not row.file_rows:
        return None
    steps: float = int(row.max_steps) / math.ceil(row.file_rows / int(row.batch))
    return steps


def _said(name: str) -> ColumnElement[str | None]:
    """A field of the recipe as text, "auto" resolved where that has been done."""
    return func.coalesce(Job.resolved[name].astext, Job.recipe[name].astext)
