"""One decode step of GPT-2 without transformers' module code around its products.

On two cores a step of 6 layers x 256 takes transformers' forward pass 9 ms for one sequence and 40 ms for 64,
the products in it about 3 and 20. The rest is calls: some 50 small operations a layer and the Python around
them, masks made anew for every layer, threads that are woken for each. Here a layer is 14 operations on the
same weights (shared, not copied), the same ones in the same order. `tests/generation` holds it to
transformers' own logits; what it does not know (other architectures, adapters) goes through theirs.

On a CPU the layers of a small model run on one thread and the head on all of them. Every operation on two
threads is a meeting of both, and where another process has one of the processors (the API does, while texts
are streamed) each of a step's hundred meetings waits for it: beside one busy process a step of 16 rows took
31 ms so, and 14 with one meeting.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2LMHeadModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from worker.generation.cache import Timeline

# What a thread more must find to do: so many multiplications and additions in the widest product of a layer,
# or so many bytes of its weight to read. Below, meeting the other thread costs more than it brings.
PRODUCT = 32_000_000
BYTES = 4_000_000


class _Layer:
    """The tensors of one block, so that a step looks up no attributes of modules."""

    def __init__(self, block: Any) -> None:
        self.norm_attention = _norm(block.ln_1)
        self.mix = _product(block.attn.c_attn)
        self.out = _product(block.attn.c_proj)
        self.scale = float(block.attn.scaling)
        self.norm_feed = _norm(block.ln_2)
        self.wide = _product(block.mlp.c_fc)
        self.narrow = _product(block.mlp.c_proj)
        self.activate = block.mlp.act


class Decoder:
    """GPT-2's decode step. Reads the weights of the model it was made of."""

    def __init__(self, weights: Any) -> None:
        body = weights.transformer
        self._tokens = body.wte.weight
        self._positions = body.wpe.weight
        self._layers = [_Layer(block) for block in body.h]
        self._heads = int(weights.config.n_head)
        self._norm = _norm(body.ln_f)
        self._head = weights.get_output_embeddings()
        self._on_cpu = self._tokens.device.type == "cpu"
        self._widest = int(weights.config.n_inner or 4 * weights.config.n_embd) * int(weights.config.n_embd)

    @classmethod
    def of(cls, weights: PreTrainedModel) -> "Decoder | None":
        """None for what it does not know."""
        if type(weights) is not GPT2LMHeadModel or weights.config.add_cross_attention:
            return None
        inner = [m for m in weights.transformer.modules() if not list(m.children())]
        known = (Conv1D, nn.LayerNorm, nn.Embedding, nn.Dropout)
        blocks = [m for m in inner if isinstance(m, known) or not list(m.parameters())]
        return cls(weights) if len(blocks) == len(inner) else None

    def step(self, tokens: torch.Tensor, timeline: Timeline) -> torch.Tensor:
        """Logits (rows, vocabulary size) after one more token of every row; `tokens` are (rows,).

        Writes the column `now` of the timeline, which has begun a step.
        """
        if not self._on_cpu:
            return self._score(self._read(tokens, timeline))
        every = torch.get_num_threads()
        torch.set_num_threads(min(every, self._threads(tokens.shape[0])))
        try:
            hidden = self._read(tokens, timeline)
        finally:
            torch.set_num_threads(every)
        return self._score(hidden)

    def _threads(self, rows: int) -> int:
        """What a layer of so many rows is worth."""
        size: int = self._tokens.element_size()
        return max(1, 2 * rows * self._widest // PRODUCT, self._widest * size // BYTES)

    def _read(self, tokens: torch.Tensor, timeline: Timeline) -> torch.Tensor:
        """All layers: (rows, width)."""
        rows = tokens.shape[0]
        mask, lengths = timeline.bias, timeline.positions
        hidden = functional.embedding(tokens, self._tokens) + functional.embedding(lengths, self._positions)
        width = hidden.shape[1]
        for place, layer in enumerate(self._layers):
            normed = functional.layer_norm(hidden, (width,), *layer.norm_attention)
            query, key, value = layer.mix(normed).view(rows, 3, self._heads, -1).unbind(1)
            keys, values = timeline.layers[place].append(key, value)
            seen = functional.scaled_dot_product_attention(
                query.unsqueeze(2), keys, values, attn_mask=mask, scale=layer.scale
            )
            hidden += layer.out(seen.view(rows, width))
            normed = functional.layer_norm(hidden, (width,), *layer.norm_feed)
            hidden += layer.narrow(layer.activate(layer.wide(normed)))
        return functional.layer_norm(hidden, (width,), *self._norm)

    def _score(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._head(hidden)
        return logits.float()


def _product(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """(rows, in) to (rows, out), on the module's own tensors."""
    if not isinstance(module, Conv1D):
        product: Callable[[torch.Tensor], torch.Tensor] = module  # of int8
        return product
    weight, bias = module.weight, module.bias
    return lambda rows: torch.addmm(bias, rows, weight)


def _norm(norm: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    return norm.weight, norm.bias, float(norm.eps)
