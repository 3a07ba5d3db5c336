"""How far a run is, how fast, when it will end, and which of its steps are worth a line in the history."""

import math
import statistics
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from worker.training import events

LINES = 50  # metric lines in a job's history, whatever its length
RECENT = 50  # steps whose mean is the speed now
FEWEST = 2  # steps measured before anything is said; the very first, which warms caches up, never counts
STOPS = 5  # evaluations and savings whose mean is theirs


class Stop(NamedTuple):
    """What happens between two steps besides nothing."""

    evaluates: bool
    saves: bool


class Pace:
    """Watches one attempt's events, each heard once, when it comes."""

    def __init__(self) -> None:
        self._total = self._examples = self._held = 0
        self._eval_steps = self._save_steps = 1
        self._last: tuple[float, int] | None = None  # when the last step ended, and which
        self._steps: deque[float] = deque(maxlen=RECENT)  # seconds from one step to the next, nothing between
        self._own: deque[float] = deque(maxlen=RECENT)  # seconds of steps as the trainer states them
        self._stops: dict[Stop, deque[float]] = {}  # the same with something between
        self._tokens, self._seconds = 0, 0.0

    @property
    def tokens_per_second(self) -> float | None:
        """Over the whole attempt but its first step, evaluations and saving included."""
        return self._tokens / self._seconds if self._seconds > 0 and len(self._own) >= FEWEST else None

    def hear(self, event: events.Event, at: float) -> dict[str, Any]:
        """Columns of the job's row that this event changes; `at` is in seconds, of a steady clock."""
        match event:
            case events.Prepared():
                self._begin(event)
                return {
                    "total_steps": event.total_steps,
                    "parameters": event.parameters,
                    "epoch_tokens": event.total_tokens,
                    "phase": "training",
                }
            case events.Step():
                self._step(event, at)
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

    def tells(self, event: events.Step) -> bool:
        return event.step == 1 or event.step % max(1, self._total // LINES) == 0

    def _begin(self, event: events.Prepared) -> None:
        recipe = event.recipe
        self._total, self._held = event.total_steps, event.validation_examples
        self._examples = int(recipe.get("total_train_batch_size") or 0)
        self._eval_steps = int(recipe.get("eval_steps") or self._total + 1)
        self._save_steps = int(recipe.get("save_steps") or self._total + 1)

    def _stop(self, step: int) -> Stop:
        """What comes right after that step."""
        last = step >= self._total
        return Stop(last or step % self._eval_steps == 0, last or step % self._save_steps == 0)

    def _step(self, event: events.Step, at: float) -> None:
        if self._last is not None and event.step == self._last[1] + 1:
            seconds, stop = at - self._last[0], self._stop(self._last[1])
            self._tokens, self._seconds = self._tokens + event.tokens, self._seconds + seconds
            self._own.append(event.tokens / event.tokens_per_second if event.tokens_per_second else seconds)
            if any(stop):
                self._stops.setdefault(stop, deque(maxlen=STOPS)).append(seconds)
            else:
                self._steps.append(seconds)
        self._last = (at, event.step)

    def _estimate(self, step: int) -> datetime | None:
        """Steps at their recent pace, and each evaluation and saving that is still to come at theirs."""
        if len(self._own) < FEWEST:
            return None
        # Where there is a stop after every step, no pause tells how long a step is.
        usual = statistics.fmean(self._steps if len(self._steps) >= FEWEST else self._own)
        stops = {
            Stop(True, True): self._count(step, math.lcm(self._eval_steps, self._save_steps)),
            Stop(True, False): self._count(step, self._eval_steps),
            Stop(False, True): self._count(step, self._save_steps),
        }
        together = stops[Stop(True, True)]
        stops[Stop(True, False)] -= together
        stops[Stop(False, True)] -= together
        stops[Stop(True, True)] += 1  # after the last step
        left = (self._total - step) * usual
        left += sum(count * self._extra(stop, usual) for stop, count in stops.items())
        return datetime.now(UTC) + timedelta(seconds=left)

    def _count(self, step: int, every: int) -> int:
        """Multiples of `every` from `step` on and before the last step."""
        return max(0, (self._total - 1) // every - (step - 1) // every)

    def _extra(self, stop: Stop, usual: float) -> float:
        """Seconds that such a stop adds."""
        if measured := self._stops.get(stop):
            return max(0.0, statistics.fmean(measured) - usual)
        if stop == Stop(True, True):
            return self._extra(Stop(True, False), usual) + self._extra(Stop(False, True), usual)
        if stop.saves or not self._examples:
            return 0.0  # only the copy to the host holds the training up
        # Not measured yet: a forward pass is a third of a step's arithmetic.
        return usual / 3 * self._held / self._examples
