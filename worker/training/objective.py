"""What a step makes smaller: a mean, over trained tokens or over preference pairs."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from app import resolution
from app.recipe import Recipe
from worker.training.batches import Batch
from worker.training.events import Rewards
from worker.training.head import Head, WholeHead
from worker.training.preference import Preference


class Objective(Protocol):
    """Sums of a batch, the loss first, and what their means are called."""

    learned: int  # sums that `learn` returns
    scored: int  # sums that `score` returns

    def over(self, units: int, trained: int) -> int:
        """What means are over: of so many units with so many trained tokens."""

    def learn(self, head: Head | WholeHead, hidden: Tensor, batch: Batch, scale: float) -> Tensor:
        """Backward of scale x the summed loss; returns the unscaled sums, on the device."""

    def score(self, head: Head | WholeHead, hidden: Tensor, batch: Batch) -> Tensor:
        """Sums without gradients, on the device."""

    def rewards(self, means: Sequence[float]) -> Rewards | None:
        """The rewards among the means, where there are any."""

    def quality(self, means: Sequence[float]) -> tuple[float | None, float | None]:
        """Perplexity and accuracy per token, from the means of what was scored, where they mean something."""


class Likelihood:
    """Supervised: the negative log-likelihood of the trained tokens, a mean over tokens."""

    learned, scored = 1, 2

    def over(self, units: int, trained: int) -> int:
        return trained

    def learn(self, head: Head | WholeHead, hidden: Tensor, batch: Batch, scale: float) -> Tensor:
        return head.learn(hidden, batch.targets, scale).reshape(1)

    def score(self, head: Head | WholeHead, hidden: Tensor, batch: Batch) -> Tensor:
        found = head.score(hidden, batch.targets)
        return torch.stack([found.loss, found.correct])

    def rewards(self, means: Sequence[float]) -> Rewards | None:
        return None

    def quality(self, means: Sequence[float]) -> tuple[float | None, float | None]:
        loss, accuracy = means
        return math.exp(loss) if loss < 700 else math.inf, accuracy


def choose(recipe: Recipe) -> Objective:
    """The objective of the recipe's method."""
    beta = resolution.beta(recipe)
    return Likelihood() if beta is None else Preference(beta)
