"""How far a run is, how fast, and which of its steps are worth a line in the history."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.training import events

LINES = 50  # metric lines in a job's history, whatever its length


class Pace:
    """Watches one attempt's events."""

    def __init__(self) -> None:
        self._total = 0
        self._first: tuple[float, int] | None = None

    def progress(self, event: events.Event) -> dict[str, Any]:
        """Columns of the job's row that this event changes."""
        match event:
            case events.Prepared():
                self._total = event.total_steps
                return {"total_steps": event.total_steps, "phase": "training"}
            case events.Step():
                return {
                    "step": event.step,
                    "trained_tokens": event.trained_tokens,
                    "phase": "training",
                    "estimated_finish": self._estimate(event.step),
                }
            case events.Evaluated():
                return {"phase": "evaluating"}
            case events.Finished():
                return {"phase": "publishing"}
            case _:
                return {}

    def _estimate(self, step: int) -> datetime | None:
        """From the speed since this attempt's first step, which itself warms caches up and does not count."""
        at = time.monotonic()
        if self._first is None:
            self._first = (at, step)
            return None
        since, first = self._first
        if step <= first:
            return None
        left = (self._total - step) * (at - since) / (step - first)
        return datetime.now(UTC) + timedelta(seconds=left)

    def tells(self, event: events.Step) -> bool:
        return event.step == 1 or event.step % max(1, self._total // LINES) == 0
