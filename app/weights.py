"""How large a model is, from the headers of its safetensors files: no torch, and no weight is read."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_HEADER = 100_000_000  # bytes, as the format itself allows
# Output layers that a model with tied weights shares with its embeddings, though the file may hold both.
OUTPUTS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("wte.weight", "wpe.weight", "embed_tokens.weight", "embed_in.weight")
# Masks and frequencies that old files carry along: computed, not learned.
COMPUTED = ("masked_bias", "inv_freq")
TIED_BY_DEFAULT = ("gpt2",)


@dataclass(frozen=True)
class Tensor:
    """One weight's name and shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Size:
    """A model's measures; `width` is that of its hidden states."""

    tensors: tuple[Tensor, ...]
    layers: int
    width: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Shared ones once."""
        return sum(tensor.size for tensor in self.tensors)

    def adapter(self, rank: int, targets: "str | tuple[str, ...]") -> int:
        """Parameters that LoRA would train: for each matrix of in x out, rank x (in + out)."""
        return sum(
            rank * sum(tensor.shape)
            for tensor in self.tensors
            if len(tensor.shape) == 2 and _is_target(tensor.name, targets)
        )


def _is_target(name: str, targets: "str | tuple[str, ...]") -> bool:
    if name.endswith(EMBEDDINGS + OUTPUTS):
        return False
    return isinstance(targets, str) or name.removesuffix(".weight").endswith(targets)


def measure(folder: Path) -> Size:
    """Raises OSError or ValueError where the folder holds no such model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    tied = config.get("tie_word_embeddings", config.get("model_type") in TIED_BY_DEFAULT)
    found = {tensor.name: tensor for file in sorted(folder.glob("*.safetensors")) for tensor in _header(file)}
    if not found:
        raise ValueError("no safetensors file")
    learned = tuple(
        tensor
        for tensor in found.values()
        if not tensor.name.endswith(COMPUTED)
        and len(tensor.shape) < 4  # a causal mask
        and not (tied and tensor.name.endswith(OUTPUTS))
    )
    return Size(
        learned,
        layers=_first(config, ("num_hidden_layers", "n_layer"), 0),
        width=_first(config, ("hidden_size", "n_embd"), 0),
        vocabulary=_first(config, ("vocab_size",), 0),
    )


def _header(file: Path) -> Iterator[Tensor]:
    """A safetensors file begins with the length of its JSON header in eight bytes, little-endian."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"{file.name} is no safetensors file")
        header: dict[str, Any] = json.loads(opened.read(length))
    for name, facts in header.items():
        if name != "__metadata__":
            yield Tensor(name, tuple(int(n) for n in facts["shape"]))


def _first(config: dict[str, Any], names: tuple[str, ...], otherwise: int) -> int:
    return next((int(config[name]) for name in names if config.get(name)), otherwise)
