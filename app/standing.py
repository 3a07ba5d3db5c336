"""Where everybody in the queue stands, counted once for all who ask at about the same time.

Counting ten thousand queued jobs takes 40 ms on a quiet machine, which each of a thousand clients would cause
with each of their questions. A long queue is therefore counted anew only once so much time has passed that
counting stays a small part of it; a short one at every question but the poll of a single job.
"""

import asyncio
import time
from collections.abc import Collection
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from app import forecast
from app.database import run
from app.forecast import Place

FEW = 50  # jobs
SHARE = 20  # counting takes a twentieth of the time at most
POLLED = 0.5  # seconds for which a poll may be told what was counted before
LONGEST = 5.0


class Standing:
    """The places of all queued jobs, as last counted; `fresh` is how long a worker counts as living."""

    def __init__(self, fresh: timedelta) -> None:
        self._fresh = fresh
        self._places: dict[str, Place] = {}
        self._at, self._cost = -LONGEST, 0.0
        self._counting = asyncio.Lock()
        self._renewed_at = -LONGEST

    def recent(self, job_id: str) -> tuple[bool, Place | None]:
        """For a poll: whether what was counted a moment ago will do, and the place; of a job that was made
        since then a long queue says none. Once it is due to be counted again, one poll is told so, and the
        others make do meanwhile."""
        at = time.monotonic()
        holds = max(POLLED, min(LONGEST, SHARE * self._cost))
        if at - self._at > holds and at - self._renewed_at > holds:
            self._renewed_at = at
            return False, None
        if at - self._at > holds + LONGEST:
            return False, None
        place = self._places.get(job_id)
        return place is not None or len(self._places) > FEW, place

    async def of(self, session: AsyncSession, job_ids: Collection[str]) -> dict[str, Place]:
        """The places of those of the jobs that are queued. In a long queue a job that was made a moment ago
        may have none yet."""
        if not job_ids:
            return {}
        asked_at = time.monotonic()
        async with self._counting:
            dear = len(self._places) > FEW and asked_at - self._at < min(LONGEST, SHARE * self._cost)
            known = self._at >= asked_at and self._places.keys() >= set(job_ids)
            if not dear and not known:
                began = time.monotonic()
                self._places = await run(session, forecast.line, self._fresh)
                self._at, self._cost = began, time.monotonic() - began
        return {job_id: self._places[job_id] for job_id in job_ids if job_id in self._places}
