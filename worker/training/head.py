"""The output layer and its loss, a few hundred tokens at a time.

A vocabulary is wide: the logits of one micro-step can outweigh the model. So they never exist whole. Each
chunk's logits become their gradient in place, in the forward pass, and only where a target is predicted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Tokens whose logits exist at once. CPU: the smallest that keeps the matrix product at full speed.
CHUNK = {"cpu": 256, "cuda": 8_192}


@dataclass(frozen=True)
class Score:
    """Sums over some targets, on the device: negative log-likelihood, and how many were ranked first."""

    loss: Tensor
    correct: Tensor


class Head:
    """A linear output layer without bias, whose weight may be the embedding's."""

    def __init__(self, weight: nn.Parameter, dtype: torch.dtype) -> None:
        self._weight, self._dtype = weight, dtype
        self._buffer: Tensor | None = None

    def learn(self, hidden: Tensor, targets: Tensor, scale: float) -> Tensor:
        """Backward of scale x (sum of the targets' losses), through `hidden` and into the weight's gradient.

        `hidden`: targets x width, with autograd history. Returns the unscaled sum, fp32.
        """
        source = hidden.detach().to(self._dtype)
        weight = self._weight.detach().to(self._dtype)
        gradient = torch.empty_like(source)
        into = self._gradient()
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = CHUNK[hidden.device.type]
        for at in range(0, len(targets), size):
            part, wanted = source[at : at + size], targets[at : at + size]
            logits = self._logits(part, weight)
            total += _to_gradient(logits, wanted)
            logits = logits.mul_(scale).to(self._dtype)
            torch.mm(logits, weight, out=gradient[at : at + size])
            if into is not None:
                _add(into, logits, part)
        hidden.backward(gradient.to(hidden.dtype))  # type: ignore[no-untyped-call]
        return total

    @torch.no_grad()
    def score(self, hidden: Tensor, targets: Tensor) -> Score:
        """Loss and accuracy without gradients."""
        weight = self._weight.detach().to(self._dtype)
        loss, correct = (torch.zeros((), dtype=torch.float64, device=hidden.device) for _ in range(2))
        size = CHUNK[hidden.device.type]
        for at in range(0, len(targets), size):
            wanted = targets[at : at + size]
            logits = self._logits(hidden[at : at + size].to(self._dtype), weight)
            correct += (logits.argmax(-1) == wanted).sum()
            loss += nn.functional.cross_entropy(logits, wanted, reduction="sum")
        return Score(loss, correct)

    def _logits(self, part: Tensor, weight: Tensor) -> Tensor:
        return torch.mm(part, weight.t()).float()

    def _gradient(self) -> Tensor | None:
        if not self._weight.requires_grad:
            return None
        if self._weight.grad is None:
            self._weight.grad = torch.zeros_like(self._weight)
        return self._weight.grad


class WholeHead:
    """Any other output layer, by the model's own module: the logits of a micro-step exist whole."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def learn(self, hidden: Tensor, targets: Tensor, scale: float) -> Tensor:
        loss = nn.functional.cross_entropy(self._module(hidden).float(), targets, reduction="sum")
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.no_grad()
    def score(self, hidden: Tensor, targets: Tensor) -> Score:
        logits = self._module(hidden).float()
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum").double()
        return Score(loss, (logits.argmax(-1) == targets).sum())


def _to_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """Turns fp32 logits into d(loss)/d(logits) in place; returns the summed loss."""
    at = targets.unsqueeze(1)
    wanted = logits.gather(1, at)
    total = torch.logsumexp(logits, 1, keepdim=True)
    logits.sub_(total).exp_()
    logits.scatter_add_(1, at, torch.full_like(wanted, -1.0))
    return (total - wanted).sum()


def _add(into: Tensor, logits: Tensor, part: Tensor) -> None:
    if into.dtype == part.dtype:
        into.addmm_(logits.t(), part)
    else:
        into += torch.mm(logits.t(), part)
