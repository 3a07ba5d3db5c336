"""LoRA through PEFT: adapters put into the network in place, and the weights with them merged in."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.recipe import Recipe
from app.resolution import lora_alpha
from worker.training.failure import Failure

# PEFT is imported where it is used: a machine that trains all weights needs only torch and transformers.
if TYPE_CHECKING:
    from peft import PeftModel

FOLDER = "adapter"
WEIGHTS = "adapter_model.safetensors"


def adapt(network: PreTrainedModel, recipe: Recipe) -> PeftModel:
    """Freezes the network and puts trainable adapters into it. Raises Failure when no layer is so named."""
    from peft import LoraConfig, get_peft_model

    rank = recipe.lora_rank or 0
    targets = "all-linear" if recipe.lora_targets == "auto" else list(recipe.lora_targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=cast(int, lora_alpha(recipe)),
        lora_dropout=recipe.lora_dropout,
        target_modules=targets,
        # GPT-2's Conv1D keeps its weight transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in network.modules()),
        task_type="CAUSAL_LM",
    )
    try:
        return cast("PeftModel", get_peft_model(network, config))
    except ValueError as error:
        raise Failure("invalid_value", f"lora_targets: {str(error)[:300]}", param="lora_targets") from None


def merged(network: PreTrainedModel) -> dict[str, Tensor]:
    """The state of the network as if it had never been adapted, updates added, the adapters untouched.

    PEFT's own merge works in place, and taking it back would round the base weights.
    """
    state = {n.replace(".base_layer.", "."): t for n, t in network.state_dict().items() if ".lora_" not in n}
    for name, module in network.named_modules():
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {}):
            layer: Any = module
            with torch.no_grad():
                weight = f"{name}.weight"
                state[weight] = state[weight] + layer.get_delta_weight("default").to(state[weight].dtype)
    return state


def adapter_state(adapted: PeftModel) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names; without embeddings, for whose config it would ask the hub."""
    from peft import get_peft_model_state_dict

    return cast(dict[str, Tensor], get_peft_model_state_dict(adapted, save_embedding_layers=False))


def write(adapted: PeftModel, tensors: dict[str, Tensor], folder: Path, base_name: str) -> None:
    """An adapter folder as PEFT writes one."""
    target = folder / FOLDER
    target.mkdir()
    config = copy(adapted.peft_config["default"])
    config.base_model_name_or_path = base_name
    config.save_pretrained(str(target))
    save_file(tensors, target / WEIGHTS, {"format": "pt"})


def restore(adapted: PeftModel, checkpoint: Path) -> None:
    """Puts a checkpoint's adapter back."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(adapted, load_file(checkpoint / FOLDER / WEIGHTS))
