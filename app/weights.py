"""How large a model is, from the headers of its safetensors files: no torch, and no weight is read."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_HEADER = 25_000_000  # bytes; 100,000 tensors take 12 MB, the format allows 100
LONGEST_NAME, MOST_DIMENSIONS = 500, 8
# Bytes of one number. What is not here (fp8, fp4) is quantized, and trained by nobody as it is.
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
BYTES |= {"I8": 1, "U8": 1, "BOOL": 1}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
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
    found = {tensor.name: tensor for file in files(folder) for tensor in header(file)[0]}
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


def files(folder: Path) -> list[Path]:
    """The files of a model's weights, as transformers finds them: one, or those that an index names.

    Raises FileNotFoundError where there is neither, ValueError for an index that leads elsewhere.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    named = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    places = named.get("weight_map") if isinstance(named, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{INDEX} has no weight_map")
    for name in set(map(str, places.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{INDEX} names {name[:100]!r}, which is no safetensors file of the folder")
    return [folder / name for name in sorted(set(places.values()))]


def header(file: Path, longest: int = LONGEST_HEADER) -> tuple[list[Tensor], int]:
    """What a safetensors file holds, by its JSON header, and the header's bytes, which the first eight tell.

    Raises ValueError where it is not exactly what the file holds: every byte one tensor's, and none two's.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= min(longest, size - 8):
            raise ValueError(f"{file.name} has a header of {length:,} bytes")
        try:
            entries = json.loads(opened.read(length), object_pairs_hook=_once)
        except RecursionError:
            raise ValueError(f"{file.name} has a header without end") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{file.name} has no JSON object for a header")
    entries.pop("__metadata__", None)
    placed = sorted((_placed(file.name, name, facts) for name, facts in entries.items()), key=lambda p: p[1:])
    at = 0
    for tensor, begin, end in placed:
        if begin != at:
            raise ValueError(f"{file.name}: {tensor.name} does not begin where the one before it ends")
        at = end
    if at != size - 8 - length:
        raise ValueError(f"{file.name} holds {size - 8 - length:,} bytes of numbers, its header says {at:,}")
    return [tensor for tensor, *_ in placed], length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in a header")
    return found


def _placed(file: str, name: str, facts: object) -> tuple[Tensor, int, int]:
    """A tensor, and from where to where its numbers lie."""
    match facts:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if (
            kind in BYTES
            and len(name) <= LONGEST_NAME
            and len(shape) <= MOST_DIMENSIONS
            and all(type(n) is int and n >= 0 for n in shape)
            and math.prod(shape) * BYTES[kind] == end - begin >= 0
        ):
            return Tensor(name, tuple(shape)), begin, end
    raise ValueError(f"{file}: the header's {name[:100]} is no tensor that we read")


def _first(config: dict[str, Any], names: tuple[str, ...], otherwise: int) -> int:
    return next((int(config[name]) for name in names if config.get(name)), otherwise)
