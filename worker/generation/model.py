"""One model in memory: weights, vocabulary, and what a request must know about them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache, DynamicCache

from app.encoding import Encoder, EncodingError
from worker.generation import adapter as adapters
from worker.generation import int8
from worker.generation.adapter import Adapter, Mixture
from worker.generation.cache import States, Timeline, states_of
from worker.generation.decoder import Decoder
from worker.generation.grammar import Lexicon
from worker.generation.head import Head, Outlook
from worker.generation.vocabulary import Vocabulary

Precision: TypeAlias = Literal["auto", "int8"]


@dataclass(frozen=True, eq=False)
class Model:
    """`context`: the most tokens, prompt and answer together. `tokens`: ids are below it. `ends`: the tokens
    that end an answer. `start`: what an empty prompt is read as. `packs`: whether a mask of our own is heard,
    so that several prompts can be read as one row. `cache_bytes_per_token`: of keys and values. `size`: bytes
    of all weights. `decoder`: the shorter way of a step, where there is one. `encoder`: how conversations are
    written, or why they cannot be. `adapter`: the update of a LoRA model that shares these weights."""

    name: str
    weights: PreTrainedModel
    vocabulary: Vocabulary
    encoder: Encoder | EncodingError
    device: torch.device
    context: int
    tokens: int
    ends: frozenset[int]
    start: int
    packs: bool
    cache_bytes_per_token: int
    size: int
    decoder: Decoder | None = None
    mixture: Mixture = field(default_factory=Mixture)
    adapter: Adapter | None = None

    @property
    def lexicon(self) -> Lexicon:
        """What a grammar needs. Raises InvalidRequest where this vocabulary cannot have one."""
        if self.vocabulary.lexicon is None:
            self.vocabulary.lexicon = Lexicon.of(self.vocabulary, self.tokens, self.ends)
        found: Lexicon = self.vocabulary.lexicon
        return found

    def varied(self, name: str, variant: "Variant") -> "Model":
        """This model with another's update; both share these weights, and are answered in one batch."""
        self.mixture.watch(self.weights, tuple(variant.adapter.pairs))
        return replace(self, name=name, encoder=variant.encoder, adapter=variant.adapter)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        cache: Cache,
        mask: torch.Tensor | None = None,
        keep: int | torch.Tensor = 1,
        adapters: Sequence[Adapter | None] = (),
    ) -> torch.Tensor:
        """Logits in float32, (rows, `keep`, vocabulary size), of the last `keep` places (0 keeps all), or of
        the places that a tensor names.

        `tokens` and `positions` are (rows, new tokens), `mask` is (rows, all tokens), 0 where a row has none,
        or (1, 1, new tokens, all tokens), False where one does not see the other.
        `adapters`: that of each row, or of none.
        """
        with self.mixture.of(adapters, self.device):
            logits: torch.Tensor = self.weights(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            ).logits
        return logits.float()

    def reads_along(self, adapters: Sequence[Adapter | None]) -> bool:
        """Whether a step of rows with these adapters can read prompts beside."""
        return self.decoder is not None and self.decoder.reads_along and not any(adapters)

    def step(
        self,
        tokens: torch.Tensor,
        timeline: Timeline,
        adapters: Sequence[Adapter | None] = (),
        prompts: Sequence[torch.Tensor] = (),
    ) -> tuple[Outlook, list[States]]:
        """What comes after one more token (rows,) of each row, through the row's adapter, and then after each
        of the prompts, where it reads along; and the keys and values of each prompt."""
        if timeline.rows:
            timeline.begin(self.device)
        if self.decoder is not None and not any(adapters):
            found = self.decoder.step(tokens, timeline, prompts)
        else:
            places, mask = timeline.positions[:, None], timeline.mask.long()
            logits = self.forward(tokens[:, None], places, timeline, mask, adapters=adapters)[:, -1]
            found = Outlook(logits), []
        timeline.advance()
        return found


@dataclass(frozen=True, eq=False)
class Variant:
    """What a LoRA model has of its own, for the time it shares its base."""

    adapter: Adapter
    encoder: Encoder | EncodingError

    @property
    def size(self) -> int:
        return self.adapter.size


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_of(device: torch.device) -> torch.dtype:
    """float32, exact, on a CPU; bfloat16 on a card that has it."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


def load(folder: Path, name: str, device: torch.device, precision: Precision = "auto") -> Model:
    """Read a Hugging Face folder: safetensors only, no code from the folder, nothing from the network.

    `int8` is for a CPU and changes the answers. Raises OSError or ValueError for what cannot be read.
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
    if device.type == "cpu":
        _own(weights)
    _fuse_activations(weights)
    packed = 0
    if device.type == "cpu" and precision == "int8":
        packed = int8.quantize(weights)
    elif device.type == "cpu" and isinstance(head := weights.get_output_embeddings(), nn.Linear):
        weights.set_output_embeddings(head := Head(head))
        packed = head.size
    ends = _ends_of(weights, tokenizer)
    decoder = Decoder.of(weights)
    return Model(
        name=name,
        weights=weights,
        vocabulary=Vocabulary(tokenizer),
        encoder=_encoder_of(folder),
        device=device,
        context=int(weights.config.max_position_embeddings),
        tokens=int(weights.config.vocab_size),
        ends=ends,
        start=_start_of(tokenizer, ends),
        # A sliding window is a second mask, which transformers makes only where it is not given the first.
        packs=getattr(weights.config, "sliding_window", None) is None,
        cache_bytes_per_token=_measure_cache(weights, device),
        size=_size_of(weights) + packed + (decoder.size if decoder else 0),
        decoder=decoder,
    )


def _own(weights: nn.Module) -> None:
    """Copy what was read out of the file's mapping: a folder that is written over while its model answers
    would change the weights, and a file that is cut short would end the process. Copies are aligned, too."""
    for parameter in weights.parameters():
        parameter.data = parameter.data.clone()


def _fuse_activations(weights: nn.Module) -> None:
    """GPT-2's GELU is written out in eight operations, a sixth of a step of 64 rows; torch has it as one."""
    for module in weights.modules():
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def read_variant(folder: Path, base_folder: Path, base: Model) -> Variant:
    """Raises NotShared where the folder is not `base` with an update, OSError where a file is gone."""
    precision = precision_of(base.device)
    adapter = adapters.read(folder, base_folder, base.weights, base.device, precision)
    return Variant(adapter, _encoder_of(folder))


def _encoder_of(folder: Path) -> Encoder | EncodingError:
    try:
        return Encoder.load(folder)
    except EncodingError as error:
        return error


def weigh(folder: Path, device: torch.device) -> int:
    """About how many bytes `load` will need, by the sizes of the weight files.

    The files may hold half precision; on a CPU packed copies of the head, one in int8, and of small layers
    come on top.
    """
    stored = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    return stored * 9 // 4 if device.type == "cpu" else stored


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
