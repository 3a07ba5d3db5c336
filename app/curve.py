"""A job's metrics thinned for drawing: of a million steps the thousand that make up the picture.

The steps are cut into half as many equal stretches as points are wanted, and of each the lowest and the
highest value are kept: every peak that a line through all points would show is still there. The database
does it in one pass over the rows; nothing of them reaches this process but what is kept.
"""

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


async def thinned(
    session: AsyncSession, job_id: str, after: int, before: int | None, points: int
) -> list[Metric]:
    """At most `points` of those steps by training loss, besides them the first, the last and all that were
    evaluated (of more than `points` evaluations again the lowest and highest)."""
    whole = between(job_id, after, before)
    span = whole.with_only_columns(func.min(Metric.step), func.max(Metric.step)).order_by(None)
    ends = (await session.execute(span)).one()
    first: int | None = ends[0]
    last: int | None = ends[1]
    if first is None or last is None:
        return []
    if last - first < points:
        return list((await session.scalars(whole)).all())
    width = -(-(last - first + 1) // max(1, points // 2))
    evaluated = whole.where(Metric.valid_loss.is_not(None)).order_by(None)
    count = await session.scalar(evaluated.with_only_columns(func.count()))
    few = (count or 0) <= points
    shown = (
        evaluated.with_only_columns(Metric.step) if few else _extremes(whole, Metric.valid_loss, first, width)
    )
    kept = union_all(_extremes(whole, Metric.loss, first, width), shown)
    # In two statements: as one, the database expects far too many steps, makes no hash of them, and compares
    # each of a million rows with each of a thousand, for over 30 seconds.
    steps = {int(step) for step in await session.scalars(kept)} | {first, last}
    chosen = whole.where(Metric.step == any_(literal(sorted(steps), ARRAY(BigInteger))))
    return list((await session.scalars(chosen)).all())


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
