"""The output layer and its loss, a few hundred tokens at a time.

A vocabulary is wide: the logits of one micro-step can outweigh the model. So they never exist whole. Each
chunk's logits become their gradient in place, in the forward pass, and only where a target is predicted.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

# Tokens whose logits exist at once, at most. CPU: larger chunks are no faster (measured at 50,257 x 256).
CHUNK = {"cpu": 1_024, "cuda": 8_192}
# A probability below this has lost digits, on its way to zero.
FAINT = 1e-30
# Matrix products like the vocabulary's side to be a multiple of this: 5 to 10 % at 50,257 on a CPU.
ROUND = 64


@dataclass(frozen=True)
class Score:
    """Sums over some targets, on the device: negative log-likelihood, and how many were ranked first."""

    loss: Tensor
    correct: Tensor


class Head:
    """A linear output layer without bias, whose weight may be the embedding's.

    Weight and gradient become views of buffers with a few rows more, which are zero, predict nothing and are
    never seen outside.
    """

    def __init__(self, weight: nn.Parameter, dtype: torch.dtype) -> None:
        self._weight, self._dtype = weight, dtype
        self._words, width = weight.shape
        self._rows = -(-self._words // ROUND) * ROUND
        self._padded = torch.zeros(self._rows, width, dtype=weight.dtype, device=weight.device)
        self._padded[: self._words] = weight.detach()
        weight.data = self._padded[: self._words]
        self._gradient: Tensor | None = None
        self._logits: Tensor | None = None

    def learn(self, hidden: Tensor, targets: Tensor, scale: float) -> Tensor:
        """Backward of scale x (sum of the targets' losses), through `hidden` and into the weight's gradient.

        `hidden`: targets x width, with autograd history. Returns the unscaled sum, fp32.
        """
        source = hidden.detach().to(self._dtype)
        weight = self._padded.to(self._dtype)
        backward = torch.empty_like(source)
        into = self._into()
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = _chunk(hidden)
        for at in range(0, len(targets), size):
            part, wanted = source[at : at + size], targets[at : at + size]
            logits = self._score(part, weight)
            total += _to_gradient(logits, wanted, part, weight)
            if self._dtype != torch.float32:
                logits = logits.mul_(scale).to(self._dtype)  # scaled first: fp16 would lose the small ones
                torch.mm(logits, weight, out=backward[at : at + size])
                if into is not None:
                    into += torch.mm(logits.t(), part)
            else:
                torch.mm(logits, weight, out=backward[at : at + size])
                if into is not None:
                    into.addmm_(logits.t(), part, alpha=scale)
        if self._dtype == torch.float32:
            backward.mul_(scale)
        hidden.backward(backward.to(hidden.dtype))  # type: ignore[no-untyped-call]
        return total

    def push(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Backward of the sum of weights x (the targets' losses), `weights` one for each target, fp32."""
        source = hidden.detach().to(self._dtype)
        weight = self._padded.to(self._dtype)
        backward = torch.empty_like(source)
        into = self._into()
        size = _chunk(hidden)
        for at in range(0, len(targets), size):
            part = source[at : at + size]
            logits = self._score(part, weight)
            _to_gradient(logits, targets[at : at + size], part, weight)
            logits = logits.mul_(weights[at : at + size, None]).to(self._dtype)
            torch.mm(logits, weight, out=backward[at : at + size])
            if into is not None:
                into += torch.mm(logits.t(), part)
        hidden.backward(backward.to(hidden.dtype))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The loss of each target, fp32, without gradients."""
        weight = self._padded.to(self._dtype)
        found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        size = _chunk(hidden)
        for at in range(0, len(targets), size):
            logits = self._score(hidden[at : at + size].to(self._dtype), weight)
            wanted = targets[at : at + size]
            found[at : at + size] = nn.functional.cross_entropy(logits, wanted, reduction="none")
        return found

    @torch.no_grad()
    def score(self, hidden: Tensor, targets: Tensor) -> Score:
        """Loss and accuracy without gradients."""
        weight = self._padded.to(self._dtype)
        loss, correct = (torch.zeros((), dtype=torch.float64, device=hidden.device) for _ in range(2))
        size = _chunk(hidden)
        for at in range(0, len(targets), size):
            wanted = targets[at : at + size]
            logits = self._score(hidden[at : at + size].to(self._dtype), weight)
            correct += (logits.argmax(-1) == wanted).sum()
            loss += nn.functional.cross_entropy(logits, wanted, reduction="sum")
        return Score(loss, correct)

    def _score(self, part: Tensor, weight: Tensor) -> Tensor:
        """fp32 logits of a chunk, in a buffer that the next chunk overwrites."""
        if self._logits is None or len(self._logits) < len(part):
            self._logits = torch.empty(len(part), self._rows, dtype=self._dtype, device=part.device)
        logits = torch.mm(part, weight.t(), out=self._logits[: len(part)]).float()
        logits[:, self._words :] = -torch.inf
        return logits

    def _into(self) -> Tensor | None:
        """The buffer behind the weight's gradient."""
        if not self._weight.requires_grad:
            return None
        if self._gradient is None:
            self._gradient = torch.zeros_like(self._padded)
        if self._weight.grad is None:
            self._gradient.zero_()
            self._weight.grad = self._gradient[: self._words]
        return self._gradient


class GatheredHead(Head):
    """A head whose weight is in parts: whole from the body's forward pass to the end of the backward pass, a
    plain parameter in its module with a plain gradient (worker.training.sharding).
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype
        self._words = self._rows = len(cast(nn.Parameter, module.weight))
        self._logits: Tensor | None = None

    @property
    def _padded(self) -> Tensor:  # type: ignore[override]
        return cast(nn.Parameter, self._module.weight).detach()

    def _into(self) -> Tensor | None:
        weight = cast(nn.Parameter, self._module.weight)
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        return weight.grad


class WholeHead:
    """Any other output layer, by the model's own module: the logits of a micro-step exist whole."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def learn(self, hidden: Tensor, targets: Tensor, scale: float) -> Tensor:
        loss = nn.functional.cross_entropy(self._module(hidden).float(), targets, reduction="sum")
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def push(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> None:
        losses = nn.functional.cross_entropy(self._module(hidden).float(), targets, reduction="none")
        losses.backward(weights)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self._module(hidden).float(), targets, reduction="none")

    @torch.no_grad()
    def score(self, hidden: Tensor, targets: Tensor) -> Score:
        logits = self._module(hidden).float()
        loss = nn.functional.cross_entropy(logits, targets, reduction="sum").double()
        return Score(loss, (logits.argmax(-1) == targets).sum())


def _chunk(hidden: Tensor) -> int:
    """Chunks of one size: a small last one would be slow."""
    count = max(1, len(hidden))
    return -(-count // -(-count // CHUNK[hidden.device.type]))


def _to_gradient(logits: Tensor, targets: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """Turns fp32 logits into d(loss)/d(logits) in place; returns the summed loss.

    On a CPU each pass over the logits counts, so the losses are read off the softmax.
    """
    at = targets.unsqueeze(1)
    if logits.is_cuda:
        losses = torch.logsumexp(logits, 1, keepdim=True) - logits.gather(1, at)
        torch.softmax(logits, 1, out=logits)
    else:
        wanted = logits.gather(1, at)
        torch.softmax(logits, 1, out=logits)
        chances = logits.gather(1, at)
        losses = -chances.log()
        if (faint := (chances < FAINT).squeeze(1)).any():
            losses[faint] = _faint(logits[faint], wanted[faint], hidden[faint], weight)
    logits.scatter_add_(1, at, torch.full_like(losses, -1.0))
    return losses.sum()


def _faint(chances: Tensor, wanted: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """Losses of targets whose chance is next to nothing, from the likeliest token's logit instead."""
    likeliest = chances.max(1, keepdim=True)
    logit = (hidden.float() * weight[likeliest.indices.squeeze(1)].float()).sum(1, keepdim=True)
    return logit - likeliest.values.log() - wanted
