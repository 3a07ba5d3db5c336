"""How a model lies on its devices: whole on each, or in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.recipe import Recipe
from worker.training.device import Device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from worker.training.sharding import Shards

# Of a device's memory; the rest is for activations and logits.
ROOM = 0.8


def place(network: PreTrainedModel, recipe: Recipe, parameters: int, device: Device) -> Shards | None:
    """Moves a network of so many parameters to its device, or this process's parts, which are returned."""
    if is_in_parts(recipe, parameters, device):
        from worker.training.sharding import Shards  # a second that one device need not wait for

        return Shards(network, device)
    network.to(device.place)  # type: ignore[arg-type]
    return None


def is_in_parts(recipe: Recipe, parameters: int, device: Device) -> bool:
    """The recipe's sharding; "auto": in parts where one device cannot hold the training."""
    if device.world == 1 or recipe.sharding == "none":
        return False
    # Adafactor looks at whole rows and columns, adapters at the layers they sit in.
    can = recipe.lora_rank is None and recipe.optimizer != "adafactor"
    numbers = 4 if recipe.optimizer == "adamw" else 2  # weight, gradient and two slots, all fp32
    share = device.capacity() / (device.world if device.place.type == "cpu" else 1)  # one memory for all
    return recipe.sharding == "full" or (can and 4 * numbers * parameters > ROOM * share)
