"""Attention on a CPU, one document after the other.

A row of several documents has a square of scores of which only the blocks on the diagonal count: of 16 short
texts in rows of 256 a sixth. So each document gets a square of its own, and a row may be as long as it likes.
Registered with transformers as an attention implementation; without `documents` it is torch's own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from worker.training.dropout import keep

NAME = "documents"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: list[int] | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Causal attention. `query` is 1 x heads x tokens x width; `documents` has the lengths of the texts that
    lie one after the other in the row. Returns 1 x tokens x heads x width.
    """
    if documents is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
    groups = query.shape[1] // key.shape[1]
    everything = (query, repeat_kv(key, groups), repeat_kv(value, groups))
    queries, keys, values = (torch.split(each[0], documents, 1) for each in everything)
    if not dropout:
        parts = [
            nn.functional.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True, scale=scaling
            )[0]
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
    else:
        parts = _drop(queries, keys, values, dropout, scaling or query.shape[-1] ** -0.5)
    return torch.cat(parts, 1).transpose(0, 1)[None], None


def _drop(
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    rate: float,
    scale: float,
) -> list[Tensor]:
    """With dropout, which torch's fast kernel for the CPU does not have. Each is heads x tokens x width."""
    heads = queries[0].shape[0]
    squares = [heads * q.shape[1] ** 2 for q in queries]
    longest = max(q.shape[1] for q in queries)
    mask = torch.full((longest, longest), -torch.inf, dtype=queries[0].dtype).triu_(1)
    parts = []
    for q, k, v, factors in zip(
        queries, keys, values, torch.split(keep(sum(squares), rate), squares), strict=True
    ):
        length = q.shape[1]
        scores = torch.baddbmm(mask[:length, :length], q, k.transpose(1, 2), alpha=scale)
        weights = torch.softmax(scores, -1) * factors.view(scores.shape).to(scores.dtype)
        parts.append(torch.bmm(weights, v))
    return parts


def suits(network: PreTrainedModel) -> bool:
    """Whether every layer attends to all that came before, through transformers' interface."""
    text = network.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["full_attention"]
    whole = getattr(text, "sliding_window", None) is None and set(kinds) == {"full_attention"}
    return whole and network._can_set_attn_implementation()


AttentionInterface.register(NAME, attend)
