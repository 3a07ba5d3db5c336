"""LoRA models that share their base: one copy of its weights, and each row of a batch with its own update.

A published LoRA model is a folder with all weights merged, and `adapter/` beside them. Where it is shown,
file by file, that the merged weights are the base's plus the update, and that all else is the base's, it is
served from the base in memory and the update: some MB instead of all.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

FOLDER = "adapter"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Of the largest weight: the sum was rounded once, in fp32, when it was written.
TOLERANCE = 1e-6
# Training copies them as they are; a chat template of its own is not among them.
TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt",
)  # fmt: skip
# What a config says of who wrote it and how, not of the model.
SILENT = ("transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache")

# Module name → (inputs, rank), (rank, outputs), with the scale in the second.
Pairs: TypeAlias = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class NotShared(Exception):
    """This folder is to be loaded whole; says why."""


@dataclass(frozen=True, eq=False)
class Adapter:
    """The update of one model. `size` in bytes."""

    pairs: Pairs
    size: int


class Mixture:
    """Which rows of the current forward pass go through which adapter; the engine's thread sets and reads."""

    def __init__(self) -> None:
        self._groups: list[tuple[Adapter, torch.Tensor | None]] = []
        self._watched: set[str] = set()

    @contextmanager
    def of(self, adapters: Sequence[Adapter | None], device: torch.device) -> Iterator[None]:
        """One adapter, or none, for each row of the passes within."""
        rows: dict[Adapter, list[int]] = {}
        for row, adapter in enumerate(adapters):
            if adapter is not None:
                rows.setdefault(adapter, []).append(row)
        self._groups = [
            (adapter, None if len(mine) == len(adapters) else torch.tensor(mine, device=device))
            for adapter, mine in rows.items()
        ]
        try:
            yield
        finally:
            self._groups = []  # an update that has left memory is not to be held here

    def watch(self, network: nn.Module, names: Sequence[str]) -> None:
        """Let these layers of the network ask for updates from now on; they answer as before without."""
        for name in names:
            if name not in self._watched:
                self._watched.add(name)
                # A hook, for it holds no reference to the layer: a base that leaves is freed at once.
                network.get_submodule(name).register_forward_hook(self._updating(name))

    def _updating(
        self, name: str
    ) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
        def update(_: nn.Module, inputs: tuple[torch.Tensor, ...], result: torch.Tensor) -> torch.Tensor:
            (states,) = inputs
            for adapter, rows in self._groups:
                pair = adapter.pairs.get(name)
                if pair is None:
                    continue
                mine = states if rows is None else states[rows]
                change = (mine @ pair[0]) @ pair[1]
                result = result + change if rows is None else result.index_add(0, rows, change)
            return result

        return update


def is_in(folder: Path) -> bool:
    return (folder / FOLDER / CONFIG).is_file()


def weigh(folder: Path) -> int:
    """About how many bytes `read` will need."""
    path = folder / FOLDER / WEIGHTS
    return path.stat().st_size if path.is_file() else 0


def read(folder: Path, base: Path, network: nn.Module, device: torch.device, dtype: torch.dtype) -> Adapter:
    """The adapter of `folder` for the network of `base`, after the proof that both give the same model.

    Raises NotShared where they do not, OSError where a file is gone.
    """
    for say in (_tokenizers, _configured, _ends):
        if say(folder) != say(base):
            raise NotShared(f"its {say.__name__.strip('_')} are not the base's")
    pairs = _pairs(folder / FOLDER)
    _prove(folder, base, network, pairs)
    placed = {
        name: (into.to(device, dtype).contiguous(), out.to(device, dtype).contiguous())
        for name, (into, out) in pairs.items()
    }
    size = sum(tensor.nbytes for pair in placed.values() for tensor in pair)
    return Adapter(placed, size)


def _tokenizers(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TOKENIZERS if (folder / name).is_file()}


def _configured(folder: Path) -> dict[str, Any]:
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return {name: value for name, value in config.to_dict().items() if name not in SILENT}


def _ends(folder: Path) -> object:
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            end = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
            if end is not None:
                return end
    return None


def _pairs(folder: Path) -> Pairs:
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    plain = (
        config.get("peft_type") == "LORA"
        and config.get("bias", "none") == "none"
        and not any(
            config.get(name) for name in ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern")
        )
    )
    if not plain:
        raise NotShared("the adapter is more than LoRA of linear layers")
    rank = int(config["r"])
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    tensors = load_file(folder / WEIGHTS)
    pairs = {}
    for name, into in tensors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            out = tensors[f"{PREFIX}{module}.lora_B.weight"]
            pairs[module] = (into.float().t(), out.float().t() * scale)
    if 2 * len(pairs) != len(tensors):
        raise NotShared("the adapter has tensors that are no LoRA of a linear layer")
    return pairs


def _prove(folder: Path, base: Path, network: nn.Module, pairs: Pairs) -> None:
    """Raises NotShared unless the folder's weights are the base's with the updates added."""
    theirs = dict(_tensors(base))
    missing = set(pairs)
    for name, read_mine in _tensors(folder):
        if name not in theirs:
            raise NotShared(f"the base has no {name}")
        mine, expected = read_mine().float(), theirs[name]().float()
        module = _module_of(name, network, pairs)
        if module is not None:
            missing.discard(module)
            layer = network.get_submodule(module)
            if not isinstance(layer, nn.Linear | Conv1D):
                raise NotShared(f"{module} is no plain linear layer here")
            update = pairs[module][0] @ pairs[module][1]
            expected = expected + (update if isinstance(layer, Conv1D) else update.t())
        if mine.shape != expected.shape or not _close(mine, expected):
            raise NotShared(f"{name} is not the base's plus the update")
    if missing:
        raise NotShared(f"no weight of {min(missing)}")


def _close(mine: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((mine - expected).abs().max() <= TOLERANCE * expected.abs().max())


def _module_of(name: str, network: nn.Module, pairs: Pairs) -> str | None:
    """The adapted module whose weight a tensor is; files may leave the inner model's name out."""
    module, _, kind = name.rpartition(".")
    inner = str(getattr(network, "base_model_prefix", ""))
    return next((each for each in (module, f"{inner}.{module}") if kind == "weight" and each in pairs), None)


def _tensors(folder: Path) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Every tensor of a folder under its name without the inner model's, read when asked for."""
    for path in sorted(folder.glob("model*.safetensors")):  # a checkpoint has an optimizer's too
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a mapping
                yield _bare(name), _reader(path, name)


def _bare(name: str) -> str:
    for prefix in ("transformer.", "model.", "gpt_neox."):
        name = name.removeprefix(prefix)
    return name


def _reader(path: Path, name: str) -> Callable[[], torch.Tensor]:
    def read_tensor() -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor

    return read_tensor
