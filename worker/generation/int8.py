"""Weights in int8 on a CPU, for those who ask: a quarter of the memory traffic, and not exact.

torch's own dynamic quantisation: weights by the row once, inputs by the batch at each product. torch calls it
deprecated in favour of torchao, whose eager kernels took ten to a hundred times as long on a CPU (365 ms
beside 32 for 16 rows of a head of 256 by 50,257); with torch pinned, it stays as it is.
"""

import warnings
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def quantize(weights: PreTrainedModel) -> int:
    """Replace all linear layers, the head too; the input embedding stays. Returns the new weights' bytes."""
    size = 0
    for parent in list(weights.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear | Conv1D):
                setattr(parent, name, _packed(child))
                size += child.weight.numel()
    return size


def _packed(layer: Any) -> nn.Module:
    from torch.ao.nn.quantized.dynamic import Linear
    from torch.ao.quantization import per_channel_dynamic_qconfig

    linear = layer
    if isinstance(layer, Conv1D):
        linear = nn.Linear(*layer.weight.shape)
        linear.weight, linear.bias = nn.Parameter(layer.weight.t().contiguous()), layer.bias
    linear.requires_grad_(False)
    linear.qconfig = per_channel_dynamic_qconfig
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # see above
        packed: nn.Module = Linear.from_float(linear)  # type: ignore[no-untyped-call]
    return packed
