"""Cursor pages: `after` is the id of the last item seen, and `seq` breaks the ties of equal seconds."""

from typing import Any, Literal, TypeVar

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import NotFound

T = TypeVar("T")
Order = Literal["asc", "desc"]


async def cut(
    session: AsyncSession,
    query: Select[T],
    table: Any,
    *,
    after: str | None,
    limit: int,
    order: Order = "desc",
    ever: Select[T] | None = None,
) -> tuple[list[T], bool]:
    """The next `limit` rows of `query` and whether more follow.

    `ever`: all that may have been listed, where rows leave the list: whoever deletes what they list, or waits
    between two pages until a job has ended, goes on behind it. Raises NotFound where `after` names none of
    these rows.
    """
    if after is not None:
        known = query if ever is None else ever
        at = await session.scalar(known.with_only_columns(table.seq).where(table.id == after))
        if at is None:
            raise NotFound(f"`after` names no item of this list: {after!r}", param="after")
        query = query.where(table.seq > at if order == "asc" else table.seq < at)
    by = table.seq.asc() if order == "asc" else table.seq.desc()
    rows: list[Any] = list((await session.scalars(query.order_by(by).limit(limit + 1))).all())
    return rows[:limit], len(rows) > limit
