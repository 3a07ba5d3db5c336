"""One decode step of GPT-2 without transformers' module code around its products; prompts are read along.

On two cores a step of 6 layers x 256 takes transformers' forward pass 9 ms for one sequence and 40 ms for 64,
the products in it about 3 and 20. The rest is calls: some 50 small operations a layer and the Python around
them, masks made anew for every layer, threads that are woken for each. Here a layer is some 15 operations on
the same weights (shared, but for small layers, which are packed). `tests/generation` holds it to
transformers' own logits; what it does not know (other architectures, adapters) goes through theirs.

On a CPU the layers of a small model run on one thread and the head on all of them. Every operation on two
threads is a meeting of both, and where another process has one of the processors (the API does, while texts
are streamed) each of a step's hundred meetings waits for it: beside one busy process a step of 16 rows took
31 ms so, and 14 with one meeting.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2LMHeadModel, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from worker.generation.cache import Look, States, Timeline
from worker.generation.head import Head, Outlook

# What a thread more must find to do: so many multiplications and additions in the widest product of a layer,
# or so many bytes of its weight to read. Below, meeting the other thread costs more than it brings.
PRODUCT = 32_000_000
BYTES = 4_000_000
# Rows from which on packed weights and attention in three operations are quicker: they take longer to begin,
# each packed product 10 us.
MANY = 4


class _Layer:
    """The tensors of one block, so that a step looks up no attributes of modules."""

    def __init__(self, block: Any) -> None:
        self.norm_attention = _norm(block.ln_1)
        self.mix = _product(block.attn.c_attn)
        self.out = _product(block.attn.c_proj)
        self.scale = float(block.attn.scaling)
        self.norm_feed = _norm(block.ln_2)
        self.feed = _Feed(block.mlp)


class _Feed:
    """The second half of a block: a wide product, GELU, a narrow product, and the sum with what came in.

    On a CPU small ones are packed once by oneDNN, as `Head` is, with GELU in the first product and the sum in
    the second: six of 256 x 1024 take 1.7 ms instead of 2.3 for 16 rows, and 4.6 instead of 6.2 for 64. Half
    of that is GELU.
    """

    def __init__(self, mlp: Any) -> None:
        self._wide, self._narrow = _product(mlp.c_fc), _product(mlp.c_proj)
        self._activate = mlp.act
        self._packed = [_pack(each) for each in (mlp.c_fc, mlp.c_proj)] if _is_worth_packing(mlp) else []
        self.size = sum(module.weight.nbytes for module in (mlp.c_fc, mlp.c_proj)) if self._packed else 0

    def __call__(self, normed: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        if not self._packed or len(normed) < MANY:
            return hidden.add_(self._narrow(self._activate(self._wide(normed))))
        (wide, wide_bias), (narrow, narrow_bias) = self._packed
        linear = torch.ops.mkldnn._linear_pointwise
        inner = linear(normed, wide, wide_bias, "gelu", [], "tanh")
        added: torch.Tensor = linear.binary(inner, hidden, narrow, narrow_bias, "add")
        return added


class Decoder:
    """GPT-2's decode step. Reads the weights of the model it was made of."""

    def __init__(self, weights: Any) -> None:
        body = weights.transformer
        self._tokens = body.wte.weight
        self._positions = body.wpe.weight
        self._order = torch.arange(len(self._positions), device=self._positions.device)
        self._layers = [_Layer(block) for block in body.h]
        self._heads = int(weights.config.n_head)
        self._norm = _norm(body.ln_f)
        self._head = weights.get_output_embeddings()
        self._on_cpu: bool = self._tokens.device.type == "cpu"
        self._widest = int(weights.config.n_inner or 4 * weights.config.n_embd) * int(weights.config.n_embd)
        self.size = sum(layer.feed.size for layer in self._layers)  # bytes that it takes beside the weights

    @classmethod
    def of(cls, weights: PreTrainedModel) -> "Decoder | None":
        """None for what it does not know."""
        if type(weights) is not GPT2LMHeadModel or weights.config.add_cross_attention:
            return None
        inner = [m for m in weights.transformer.modules() if not list(m.children())]
        known = (Conv1D, nn.LayerNorm, nn.Embedding, nn.Dropout)
        blocks = [m for m in inner if isinstance(m, known) or not list(m.parameters())]
        return cls(weights) if len(blocks) == len(inner) else None

    @property
    def reads_along(self) -> bool:
        """On a card one pass over all prompts is quicker than an attention of its own for each."""
        return self._on_cpu

    def step(
        self, tokens: torch.Tensor, timeline: Timeline, prompts: Sequence[torch.Tensor] = ()
    ) -> tuple[Outlook, list[States]]:
        """What comes after one more token of every row, `tokens` (rows,), then what comes after each prompt
        (tokens,); and the prompts' keys and values.

        Writes the column `now` of the timeline, which has begun a step if it has rows.
        """
        every = torch.get_num_threads()
        if self._on_cpu:
            torch.set_num_threads(min(every, self._threads(len(tokens) + sum(map(len, prompts)))))
        try:
            hidden, states = self._read(tokens, timeline, prompts)
        finally:
            torch.set_num_threads(every)
        return Outlook(hidden, self._head), states

    def _hear(self, query: torch.Tensor, layer: Any, look: Look, scale: float) -> torch.Tensor:
        """Attention of one token of each row, (rows, heads, head size), to what its row holds; (rows, width).

        Of many rows on a CPU it is three operations, and values are summed up as an embedding bag, which
        fetches ahead from memory: of 64 rows of 50 columns in 0.17 ms a layer, where a product takes 0.46.
        The three take 0.75, torch's own attention 1.1.
        """
        keys, values = layer.seen(look.rows, look.columns)
        if not self._on_cpu or len(query) < MANY:
            heard = functional.scaled_dot_product_attention(
                query.unsqueeze(2), keys, values, attn_mask=look.bias, scale=scale
            )
            return heard.view(len(query), -1)
        hides = keys.new_zeros(()) if look.bias is None else look.bias.flatten(0, 1)
        asking = query.reshape(-1, 1, query.shape[-1])
        scores = torch.baddbmm(hides, asking, keys.flatten(0, 1).transpose(1, 2), alpha=scale)
        heard = functional.embedding_bag(
            look.cells, layer.values.flatten(0, 2), look.starts, mode="sum",
            per_sample_weights=scores.softmax(-1).flatten(),
        )  # fmt: skip
        return heard.view(len(query), -1)

    def _threads(self, rows: int) -> int:
        """What a layer of so many rows is worth."""
        size: int = self._tokens.element_size()
        return max(1, 2 * rows * self._widest // PRODUCT, self._widest * size // BYTES)

    def _read(
        self, tokens: torch.Tensor, timeline: Timeline, prompts: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[States]]:
        """All layers over all tokens as rows of one product; only attention knows who they belong to."""
        rows = len(tokens)
        ends = list(accumulate((len(prompt) for prompt in prompts), initial=rows))
        spans = [slice(start, end) for start, end in pairwise(ends)]
        states: list[States] = [[] for _ in prompts]
        places = [timeline.positions[:rows], *(self._order[: len(prompt)] for prompt in prompts)]
        hidden = functional.embedding(torch.cat([tokens, *prompts]), self._tokens)
        hidden += functional.embedding(torch.cat(places), self._positions)
        width = hidden.shape[1]
        looks = timeline.looks() if rows else []
        for place, layer in enumerate(self._layers):
            normed = functional.layer_norm(hidden, (width,), *layer.norm_attention)
            query, key, value = layer.mix(normed).view(len(hidden), 3, self._heads, -1).unbind(1)
            if rows:
                timeline.layers[place].append(key[:rows], value[:rows])
            seen = [self._hear(query[look.rows], timeline.layers[place], look, layer.scale) for look in looks]
            for span, own in zip(spans, states, strict=True):
                asking, keys, values = (each[span].transpose(0, 1)[None] for each in (query, key, value))
                own.append((keys, values))
                heard = functional.scaled_dot_product_attention(
                    asking, keys, values, is_causal=True, scale=layer.scale
                )
                seen.append(heard[0].transpose(0, 1).reshape(-1, width))
            hidden += layer.out(torch.cat(seen) if len(seen) > 1 else seen[0])
            normed = functional.layer_norm(hidden, (width,), *layer.norm_feed)
            hidden = layer.feed(normed, hidden)
        if prompts:
            last = [*range(rows), *(end - 1 for end in ends[1:])]
            hidden = hidden[last]
        return functional.layer_norm(hidden, (width,), *self._norm), states


def _product(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """(rows, in) to (rows, out), on the module's own tensors."""
    if not isinstance(module, Conv1D):
        product: Callable[[torch.Tensor], torch.Tensor] = module  # of int8
        return product
    weight, bias = module.weight, module.bias
    return lambda rows: torch.addmm(bias, rows, weight)


def _is_worth_packing(mlp: Any) -> bool:
    """Whether it is fp32 of a small model on a CPU: where weights are large, a copy of them is dear."""
    if not isinstance(mlp.c_fc, Conv1D) or not isinstance(mlp.act, nn.GELU) or mlp.act.approximate != "tanh":
        return False
    weight = mlp.c_fc.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.nbytes < BYTES


def _pack(module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    weight = module.weight.detach().t().contiguous()
    return torch.ops.mkldnn._reorder_linear_weight(weight, Head.ROWS), module.bias


def _norm(norm: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    return norm.weight, norm.bias, float(norm.eps)
