"""A job's metrics thinned for drawing: of a million steps the thousand that make up the picture.

`spread` looks a thousand times into an index: a few milliseconds, however long the job. `thinned` reads
every step, a second for a million, and keeps of each of half as many equal stretches as points are wanted the
lowest and the highest value: every peak that a line through all points would show is still there. The
database does it in one pass over the rows; nothing of them reaches this process but what is kept.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Double,
    Select,
    any_,
    cast,
    func,
    literal,
    select,
    true,
    type_coerce,
    union_all,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app.tables import Metric

Column = InstrumentedAttribute[float | None]


def between(job_id: str, after: int, before: int | None) -> Select[Metric]:
    """The metrics of the steps beyond `after` and below `before`, in order."""
    query = select(Metric).where(Metric.job_id == job_id, Metric.step > after).order_by(Metric.step)
    return query if before is None else query.where(Metric.step < before)


async def spread(
    session: AsyncSession, job_id: str, after: int, before: int | None, points: int
) -> list[Metric]:
    """At most `points` of those steps at equal distances, the first and the last among them, besides them
    those that were evaluated (of more than `points` as many, spread too)."""
    whole = between(job_id, after, before)
    ends = await _ends(session, whole)
    if ends is None:
        return []
    if ends[1] - ends[0] < points:
        return list((await session.scalars(whole)).all())
    evaluated = await _evaluated(session, whole, points)
    if evaluated is None:
        evaluated = (await session.scalars(_places(_of_evaluated(whole), ends, points))).all()
    places = await session.scalars(_places(whole, ends, points))
    return await _rows(session, whole, [*places, *evaluated, *ends])


async def thinned(
    session: AsyncSession, job_id: str, after: int, before: int | None, points: int
) -> list[Metric]:
    """At most `points` of those steps by training loss, besides them the first, the last and all that were
    evaluated (of more than `points` evaluations again the lowest and highest)."""
    whole = between(job_id, after, before)
    ends = await _ends(session, whole)
    if ends is None:
        return []
    if ends[1] - ends[0] < points:
        return list((await session.scalars(whole)).all())
    first, last = ends
    width = -(-(last - first + 1) // max(1, points // 2))
    evaluated = await _evaluated(session, whole, points)
    if evaluated is None:
        extremes = _extremes(_of_evaluated(whole), Metric.valid_loss, first, width)
        evaluated = (await session.scalars(extremes)).all()
    peaks = await session.scalars(_extremes(whole, Metric.loss, first, width))
    return await _rows(session, whole, [*peaks, *evaluated, *ends])


async def _ends(session: AsyncSession, whole: Select[Metric]) -> tuple[int, int] | None:
    """The first and the last step; None where there is none."""
    span = whole.with_only_columns(func.min(Metric.step), func.max(Metric.step)).order_by(None)
    first, last = (await session.execute(span)).one()
    return None if first is None or last is None else (first, last)


def _of_evaluated(whole: Select[Metric]) -> Select[Metric]:
    return whole.where(Metric.valid_loss.is_not(None))


async def _evaluated(session: AsyncSession, whole: Select[Metric], most: int) -> Sequence[int] | None:
    """The steps that were evaluated; None where there are more than `most`."""
    query = _of_evaluated(whole).with_only_columns(Metric.step).limit(most + 1)
    steps = (await session.scalars(query)).all()
    return steps if len(steps) <= most else None


async def _rows(session: AsyncSession, whole: Select[Metric], steps: Iterable[float]) -> list[Metric]:
    # A statement of its own: as one with what finds the steps, the database expects far too many, makes no
    # hash of them, and compares each of a million rows with each of a thousand, for over 30 seconds.
    chosen = whole.where(Metric.step == any_(literal(sorted(set(map(int, steps))), ARRAY(BigInteger))))
    return list((await session.scalars(chosen)).all())


def _places(whole: Select[Metric], ends: tuple[int, int], points: int) -> Select[int]:
    """The first step at or behind each of `points` places spread evenly: as many look-ups in an index."""
    first, last = ends
    place = func.generate_series(0, points - 1, type_=BigInteger).table_valued("n").render_derived("place")
    reached = first + (last - first) * place.c.n // (points - 1)
    near = whole.with_only_columns(Metric.step).where(Metric.step >= reached).limit(1).lateral("near")
    return select(near.c.step).select_from(place).join(near, true())


def _extremes(whole: Select[Metric], column: Column, first: int, width: int) -> Select[Any]:
    """The steps of the lowest and of the highest value in each stretch of `width` steps."""
    # A pair of numbers is compared by the first, then by the second: no sorting, unlike DISTINCT ON.
    pair = type_coerce(array([column, cast(Metric.step, Double)]), ARRAY(Double))
    ends = (
        whole.where(column.is_not(None))
        .with_only_columns(func.min(pair).label("low"), func.max(pair).label("high"))
        .order_by(None)
        .group_by((Metric.step - first) // width)
        .cte(f"ends_of_{column.key}")
    )
    both = union_all(select(ends.c.low[2].label("step")), select(ends.c.high[2].label("step"))).subquery()
    return select(both.c.step)
