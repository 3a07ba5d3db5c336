"""What is known of a job when it is judged: its curves, its resolved recipe, its samples."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SMOOTHED = 25  # stretches a curve is cut into; the median of each stands for it


class Point(NamedTuple):
    """One value of a curve."""

    step: int
    value: float


@dataclass(frozen=True)
class Course:
    """How a job has gone so far. `ended_shares`: at each evaluation, the share of samples that ended."""

    recipe: Mapping[str, Any]
    total_steps: int
    loss: Sequence[Point] = ()
    valid_loss: Sequence[Point] = ()
    speed: Sequence[Point] = ()  # tokens a second
    ended_shares: Sequence[Point] = ()
    prepared: Mapping[str, Any] = field(default_factory=dict)  # facts of the trainer's event
    finished: bool = False
    error_code: str | None = None

    @property
    def step(self) -> int:
        return self.loss[-1].step if self.loss else 0

    def after_warmup(self) -> list[Point]:
        """The smoothed training loss from where the learning rate has reached its peak."""
        warmup = min(self.recipe.get("lr_scheduler_warmup_steps") or 0, self.total_steps // 2)
        return smooth([point for point in self.loss if point.step > warmup])


def smooth(points: Sequence[Point]) -> list[Point]:
    """Medians of at most SMOOTHED stretches of equal length, each at its stretch's last step."""
    size = -(-len(points) // SMOOTHED) if points else 1
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    if len(parts) > 1 and len(parts[-1]) < size / 2:  # too few to stand for a stretch
        parts[-2:] = [[*parts[-2], *parts[-1]]]
    return [Point(part[-1].step, statistics.median(p.value for p in part)) for part in parts]
