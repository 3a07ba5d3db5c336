"""How much memory a job needs, by formula: for "will it fit", within a quarter or so, not to the byte.

    weights        4 bytes a parameter, 2 more where matrices are multiplied in half precision
    gradients      4 bytes a trained parameter
    optimizer      AdamW 8 bytes a trained parameter (two means), Adafactor and SGD next to nothing
    activations    what the backward pass needs of a micro-step: 34 values of 2 bytes a token, layer and unit
                   of width, 68 bytes in single precision (Korthikanti et al. 2022, "Reducing Activation
                   Recomputation in Large Transformer Models", without the attention matrix, which is never
                   whole here); with gradient checkpointing 2 values a layer, and one layer in full
    output layer   one chunk's logits, which become their gradient in place, twice
    the rest       libraries and their buffers: 0.6 GB

The output layer's own buffers and the copies that a checkpoint takes to the host are small beside these.
"""

from dataclasses import dataclass

from app.recipe import Recipe
from app.resolution import Kind
from app.weights import Size

ACTIVATIONS = 34  # values of a block that its backward pass needs, a token and unit of width
CHUNK = {"cpu": 512, "cuda": 8_192}  # tokens whose logits exist at once (worker.training.head)
REST = 600_000_000  # bytes
OPTIMIZER = {"adamw": 8.0, "adafactor": 0.1, "sgd": 0.0}  # bytes a trained parameter


@dataclass(frozen=True)
class Footprint:
    """Bytes on each device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    rest: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.rest


def estimate(recipe: Recipe, size: Size, kind: Kind, micro_tokens: float) -> Footprint:
    """For micro-steps of so many tokens, padding included."""
    half = recipe.mixed_precision_training != "no" and kind == "cuda"
    trained = size.adapter(recipe.lora_rank, recipe.lora_targets) if recipe.lora_rank else size.parameters
    bytes_each = 2 if half else 4
    block = micro_tokens * size.width * bytes_each
    layers = 2 * size.layers + ACTIVATIONS if recipe.gradient_checkpointing else ACTIVATIONS * size.layers
    logits = min(CHUNK[kind], micro_tokens) * size.vocabulary * 4 * 2
    return Footprint(
        weights=size.parameters * (6 if half else 4) + (4 * trained if recipe.lora_rank else 0),
        gradients=4 * trained,
        optimizer=int(OPTIMIZER[recipe.optimizer] * trained),
        activations=int(block * layers + logits),
        rest=REST,
    )
