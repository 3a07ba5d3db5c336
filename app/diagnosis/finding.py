"""What a diagnosis says: one sentence, the numbers behind it, and changes that would help."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.diagnosis.course import Point

Code = Literal[
    "underfitting",
    "overfitting",
    "slow_training",
    "diverging",
    "warmup_longer_than_run",
    "too_few_steps",
    "never_stops",
]


@dataclass(frozen=True)
class Evidence:
    """A part of a curve: `metric` is its name among the metrics, the points are what to mark on it."""

    metric: Literal["loss", "valid_loss", "tokens_per_second", "learning_rate", "ended_share"]
    points: Sequence[Point] = ()

    def wire(self) -> dict[str, Any]:
        marks = [{"step": point.step, "value": point.value} for point in self.points]
        return {"metric": self.metric, "points": marks}


@dataclass(frozen=True)
class Remedy:
    """Hyperparameters of a new job that would help; none where the change is one of data."""

    says: str
    hyperparameters: dict[str, Any]

    def wire(self) -> dict[str, Any]:
        return {"says": self.says, "hyperparameters": self.hyperparameters}


@dataclass(frozen=True)
class Finding:
    """One trouble."""

    code: Code
    says: str
    evidence: Evidence
    remedies: Sequence[Remedy]

    def wire(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "says": self.says,
            "evidence": self.evidence.wire(),
            "remedies": [remedy.wire() for remedy in self.remedies],
        }
