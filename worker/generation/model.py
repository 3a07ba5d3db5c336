"""One model in memory: weights, vocabulary, and what a request must know about them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from worker.generation.cache import states_of
from worker.generation.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Model:
    """`context`: the most tokens, prompt and answer together. `tokens`: ids are below it. `ends`: the tokens
    that end an answer. `start`: what an empty prompt is read as. `cache_bytes_per_token`: of keys and values.
    `size`: bytes of all weights."""

    name: str
    weights: PreTrainedModel
    vocabulary: Vocabulary
    device: torch.device
    context: int
    tokens: int
    ends: frozenset[int]
    start: int
    cache_bytes_per_token: int
    size: int

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        cache: Cache,
        mask: torch.Tensor | None = None,
        keep: int = 1,
    ) -> torch.Tensor:
        """Logits in float32, (rows, `keep`, vocabulary size), of the last `keep` places; 0 keeps all.

        `tokens` and `positions` are (rows, new tokens), `mask` is (rows, all tokens), 0 where a row has none.
        """
        logits: torch.Tensor = self.weights(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        return logits.float()


class Head(nn.Module):
    """The output embedding on a CPU, where half of a decode step is this product and its layout decides.

    Of 256 by 50,257 on 2 cores: one row takes 7.8 ms as stored and 2.8 with a contiguous transpose; 16 rows
    take 16 ms as stored and 9 with the weight on the left.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight  # (vocabulary size, width), usually the input embedding itself
        self.bias = linear.bias
        self.register_buffer("transposed", linear.weight.detach().t().contiguous(), persistent=False)
        self.transposed: torch.Tensor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, width) to (…, vocabulary size)."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        logits = rows @ self.transposed if rows.shape[0] == 1 else (self.weight @ rows.t()).t()
        if self.bias is not None:
            logits = logits + self.bias
        return logits.reshape(*hidden.shape[:-1], -1)


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_of(device: torch.device) -> torch.dtype:
    """float32, exact, on a CPU; bfloat16 on a card that has it."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def load(folder: Path, name: str, device: torch.device) -> Model:
    """Read a Hugging Face folder: safetensors only, no code from the folder, nothing from the network.

    Raises OSError or ValueError for what cannot be read.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    weights: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        dtype=precision_of(device),
    )
    weights.to(device).eval().requires_grad_(False)
    head = weights.get_output_embeddings()
    if device.type == "cpu" and isinstance(head, nn.Linear):
        weights.set_output_embeddings(Head(head))
    ends = _ends_of(weights, tokenizer)
    return Model(
        name=name,
        weights=weights,
        vocabulary=Vocabulary(tokenizer),
        device=device,
        context=int(weights.config.max_position_embeddings),
        tokens=int(weights.config.vocab_size),
        ends=ends,
        start=_start_of(tokenizer, ends),
        cache_bytes_per_token=_measure_cache(weights, device),
        size=_size_of(weights),
    )


def weigh(folder: Path, device: torch.device) -> int:
    """About how many bytes `load` will need, by the sizes of the weight files.

    The files may hold half precision; on a CPU a transpose of the head comes on top.
    """
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return stored * 2 if device.type == "cpu" else stored


def _size_of(weights: nn.Module) -> int:
    tensors = {id(each): each for each in [*weights.parameters(), *weights.buffers()]}
    return sum(each.nbytes for each in tensors.values())


def _ends_of(weights: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """The end tokens of the generation config, else of the model's config, else the tokenizer's."""
    for source in (weights.generation_config, weights.config, tokenizer):
        named = getattr(source, "eos_token_id", None)
        if named is not None:
            return frozenset(named if isinstance(named, list) else [named])
    return frozenset()


def _start_of(tokenizer: Any, ends: frozenset[int]) -> int:
    if tokenizer.bos_token_id is not None:
        return int(tokenizer.bos_token_id)
    return min(ends, default=0)


@torch.inference_mode()
def _measure_cache(weights: PreTrainedModel, device: torch.device) -> int:
    """Bytes of keys and values one token takes, by running one: which also warms the model up."""
    cache = DynamicCache()
    token = torch.zeros((1, 1), dtype=torch.long, device=device)
    weights(input_ids=token, past_key_values=cache, use_cache=True)
    return sum(keys.nbytes + values.nbytes for keys, values in states_of(cache))
