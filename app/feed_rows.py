"""What a job's stream is made of: events by `seq` and metrics by step, read from the rows, merged by time."""

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

from sqlalchemy import BigInteger, String, column, select, true, values
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app import wire
from app.tables import Event, JsonObject, Metric


@dataclass(frozen=True)
class Item:
    """An event (`seq` and `event_id`) or a metric (`step`), and what is sent of it."""

    at: datetime
    text: str
    seq: int | None = None
    event_id: str = ""
    step: int | None = None


@dataclass(frozen=True)
class Cursor:
    """The last event and the last step somebody has seen; before any they are 0 and -1."""

    seq: int
    event_id: str
    step: int

    def __str__(self) -> str:
        return f"{self.event_id}:{'' if self.step < 0 else self.step}"

    def past(self, item: Item) -> Self:
        """The cursor once this item is seen too."""
        if item.step is not None:
            return replace(self, step=max(self.step, item.step))
        if item.seq is not None and item.seq > self.seq:
            return replace(self, seq=item.seq, event_id=item.event_id)
        return self

    def sees(self, item: Item) -> bool:
        """Whether this item has been seen."""
        return item.step <= self.step if item.step is not None else (item.seq or 0) <= self.seq

    def is_before(self, other: "Cursor") -> bool:
        """Whether `other` has seen anything that this one has not."""
        return self.seq < other.seq or self.step < other.step


def dump(body: JsonObject) -> str:
    """One line of JSON."""
    return json.dumps(body, separators=(",", ":"))


async def read(session: AsyncSession, cursors: Mapping[str, Cursor], most: int) -> dict[str, list[Item]]:
    """Up to `most` events and as many metrics of each job beyond its cursor, in the order they are sent."""
    events = await _beyond(session, Event, Event.seq, {job: at.seq for job, at in cursors.items()}, most)
    metrics = await _beyond(session, Metric, Metric.step, {job: at.step for job, at in cursors.items()}, most)
    return {
        job_id: _merge(
            [_event(row) for row in events.get(job_id, ())],
            [_metric(row) for row in metrics.get(job_id, ())],
            most,
        )
        for job_id in events.keys() | metrics.keys()
    }


async def _beyond(
    session: AsyncSession, table: Any, number: Any, last: Mapping[str, int], most: int
) -> dict[str, list[Any]]:
    wanted = values(column("job_id", String), column("last", BigInteger), name="wanted").data(
        list(last.items())
    )
    beyond = select(table).where(table.job_id == wanted.c.job_id, number > wanted.c.last)
    found = aliased(table, beyond.order_by(number).limit(most).lateral("found"))
    rows: dict[str, list[Any]] = {}
    for row in await session.scalars(select(found).select_from(wanted).join(found, true())):
        rows.setdefault(row.job_id, []).append(row)
    for of_job in rows.values():
        of_job.sort(key=lambda row: getattr(row, number.key))  # a join promises no order
    return rows


def _merge(events: Sequence[Item], metrics: Sequence[Item], most: int) -> list[Item]:
    """By time; not beyond the end of a list that was cut off, whose next item would have come in between."""
    cut = [items[-1] for items in (events, metrics) if len(items) >= most]
    merged = []
    for item in heapq.merge(events, metrics, key=lambda item: item.at):
        merged.append(item)
        if item in cut:
            break
    return merged


def _event(row: Event) -> Item:
    return Item(row.created_at, dump(wire.event(row)), seq=row.seq, event_id=row.id)


def _metric(row: Metric) -> Item:
    body = {"object": "fine_tuning.job.metric", **wire.metric(row)}
    return Item(row.created_at, dump(body), step=row.step)
