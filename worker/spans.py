"""An attempt as spans of the trace that the job's POST began: waiting, preparing, the first step, the rest.

One after the other, each from the end of the one before; what an attempt does not reach has none.
"""

import time

from app.lifecycle.claims import Claim
from app.tracing import Tracing
from worker.order import Order


class Spans:
    """Of one attempt, from its claim on."""

    def __init__(self, tracing: Tracing, held: Claim, given: Order) -> None:
        self._tracing, self._parent = tracing, given.traceparent
        self._facts: dict[str, str | int] = {
            "job_id": held.job_id,
            "epoch": held.epoch,
            "attempt": held.attempt,
            "request_id": given.request_id or "",
        }
        self._since = given.due_since
        self._stepped = False
        self.end("queued")

    def end(self, name: str) -> None:
        """What was going on until now was this."""
        self._tracing.past(name, self._parent, self._since, **self._facts)
        self._since = time.time()

    def step(self) -> None:
        """A step was stated; only the first one counts."""
        if not self._stepped:
            self._stepped = True
            self.end("first_step")
