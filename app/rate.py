"""A key's requests a minute, counted in the database: exact over all API processes.

Why there and not in Redis or in each process: docs/decisions/0001-limits-are-counted-in-postgres.md.
"""

import math

from sqlalchemy import Double, cast, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import TooMany
from app.keyring import RequestBudget
from app.tables import now

Headers = dict[str, str]


async def spend_request(session: AsyncSession, key_id: str, per_minute: int) -> Headers:
    """Take one request from the key's budget, which holds a minute's worth and fills up steadily.

    Returns the `x-ratelimit-` headers. Raises TooMany, with them and with `retry-after`, when it is empty.
    """
    elapsed = func.extract("epoch", now - RequestBudget.at)
    filled = func.least(float(per_minute), RequestBudget.remaining + elapsed * per_minute / 60)
    statement = insert(RequestBudget).values(key_id=key_id, remaining=per_minute - 1)
    remaining = await session.scalar(
        statement.on_conflict_do_update(
            index_elements=["key_id"], set_={"remaining": filled - 1, "at": now}, where=filled >= 1
        ).returning(RequestBudget.remaining)
    )
    if remaining is not None:
        return _headers(per_minute, remaining)
    left = await session.scalar(select(cast(filled, Double)).where(RequestBudget.key_id == key_id))
    wait = max(1, math.ceil((1 - (left or 0.0)) * 60 / per_minute))
    raise TooMany(
        f"This key's limit is {per_minute} requests a minute; the next one is free in {wait} s.",
        code="rate_limit_exceeded",
        headers={**_headers(per_minute, left or 0.0), "retry-after": str(wait)},
    )


def _headers(per_minute: int, remaining: float) -> Headers:
    seconds = (per_minute - remaining) * 60 / per_minute
    return {
        "x-ratelimit-limit-requests": str(per_minute),
        "x-ratelimit-remaining-requests": str(max(0, math.floor(remaining))),
        # Until the budget is full again.
        "x-ratelimit-reset-requests": f"{seconds:.3f}s",
    }
