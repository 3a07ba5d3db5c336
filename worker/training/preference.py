"""Direct preference optimization: of two answers, make one likelier than it was, by more than the other.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
equation 7: an answer's reward is beta x (log p - log p0), where p0 is the model before training; the loss of
a pair is -log sigmoid(reward of the preferred answer - reward of the other).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worker.training.batches import Batch
from worker.training.events import Rewards
from worker.training.head import Head, WholeHead

NAMES = ("chosen", "rejected", "margin", "accuracy")


class Preference:
    """The loss, a mean over pairs. A batch holds each pair's preferred answer and then its other one."""

    learned = scored = 1 + len(NAMES)

    def __init__(self, beta: float) -> None:
        self._beta = beta

    def over(self, units: int, trained: int) -> int:
        return units

    def learn(self, head: Head | WholeHead, hidden: Tensor, batch: Batch, scale: float) -> Tensor:
        # A token's share of the gradient is known only once both answers are read to their ends. So the head
        # computes its logits twice, in chunks, rather than keep them.
        sums, slopes = self._judge(head.losses(hidden, batch.targets), batch)
        head.push(hidden, batch.targets, (slopes * scale).float()[batch.owners])
        return sums

    def score(self, head: Head | WholeHead, hidden: Tensor, batch: Batch) -> Tensor:
        return self._judge(head.losses(hidden, batch.targets), batch)[0]

    def rewards(self, means: Sequence[float]) -> Rewards:
        return dict(zip(NAMES, means[1:], strict=True))

    def quality(self, means: Sequence[float]) -> tuple[float | None, float | None]:
        return None, None

    def _judge(self, losses: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums of loss, rewards and wins; and for each answer the loss's derivative by its tokens' losses."""
        if batch.reference is None:
            raise ValueError("pairs without the log-likelihoods before training")
        rewards = self._beta * (likelihoods(losses, batch.owners, len(batch.reference)) - batch.reference)
        chosen, rejected = rewards.view(-1, 2).unbind(1)
        margin = chosen - rejected
        loss = nn.functional.softplus(-margin)
        slope = self._beta * torch.sigmoid(-margin)
        sums = torch.stack([loss, chosen, rejected, margin, (margin > 0).double()]).sum(1)
        return sums, torch.stack([slope, -slope], 1).reshape(-1)


def likelihoods(losses: Tensor, owners: Tensor, count: int) -> Tensor:
    """Each example's log-likelihood from its tokens' losses; in fp64, for differences of sums matter."""
    found = torch.zeros(count, dtype=torch.float64, device=losses.device)
    return found.index_add_(0, owners, losses.double()).neg_()
