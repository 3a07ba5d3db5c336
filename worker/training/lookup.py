"""Looking up embeddings on a CPU, with a gradient that touches only the rows that were looked up.

Torch's own writes a gradient of the whole table and adds it: of 50,257 x 256 that is 21 ms a micro-step,
where adding 720 rows takes 0.1.
"""

from typing import Any

import torch
from torch import Tensor, nn


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: nn.Parameter) -> Tensor:
        ctx.ids, ctx.weight = ids, weight
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        weight: nn.Parameter = ctx.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ctx.ids.reshape(-1), gradient.reshape(-1, gradient.shape[-1]))
        return None, None


class Embedding(nn.Embedding):
    """As nn.Embedding, of whose options it has none."""

    def forward(self, ids: Tensor) -> Tensor:
        """Ids of any shape, to the same and the table's width."""
        if not (self.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(ids)
        found: Tensor = _Lookup.apply(ids, self.weight)  # type: ignore[no-untyped-call]
        return found


def replace(network: nn.Module) -> None:
    """Makes the plain embeddings of a network ours; they stay the same objects, tied or not."""
    for module in network.modules():
        if type(module) is nn.Embedding and not _has_options(module):
            module.__class__ = Embedding


def _has_options(module: Any) -> bool:
    limited = module.padding_idx is not None or module.max_norm is not None
    return limited or module.scale_grad_by_freq or module.sparse
