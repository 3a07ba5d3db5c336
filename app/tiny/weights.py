"""Random weights of a GPT-2, drawn and written with nothing but the standard library.

The API process, which has no torch, makes the built-in model on its first start.
"""

import json
import math
import random
import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

Shape = tuple[int, ...]

# GPT-2's own: every weight N(0, 0.02), but the two projections a layer that are added to the residual stream
# are drawn smaller by the square root of their number, so that the sum does not grow with depth.
DEVIATION = 0.02


def shapes(vocabulary: int, positions: int, width: int, layers: int) -> Iterator[tuple[str, Shape]]:
    """Names and shapes as transformers' GPT2LMHeadModel saves them; the head is `wte` again."""
    yield "transformer.wte.weight", (vocabulary, width)
    yield "transformer.wpe.weight", (positions, width)
    for layer in range(layers):
        block = f"transformer.h.{layer}"
        yield from norm(f"{block}.ln_1", width)
        yield from linear(f"{block}.attn.c_attn", width, 3 * width)
        yield from linear(f"{block}.attn.c_proj", width, width)
        yield from norm(f"{block}.ln_2", width)
        yield from linear(f"{block}.mlp.c_fc", width, 4 * width)
        yield from linear(f"{block}.mlp.c_proj", 4 * width, width)
    yield from norm("transformer.ln_f", width)


def norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, Shape]]:
    """GPT-2's `Conv1D` stores inputs by outputs, the transpose of `torch.nn.Linear`."""
    yield f"{name}.weight", (inputs, outputs)
    yield f"{name}.bias", (outputs,)


def values(name: str, shape: Shape, layers: int, draw: random.Random) -> "array[float]":
    """The start of one tensor, as float32."""
    if name.endswith(".bias"):
        return array("f", bytes(4 * shape[0]))
    if len(shape) == 1:
        return array("f", [1.0]) * shape[0]
    deviation = DEVIATION / math.sqrt(2 * layers) if name.endswith("c_proj.weight") else DEVIATION
    gauss = draw.gauss
    return array("f", [gauss(0.0, deviation) for _ in range(math.prod(shape))])


def write(path: Path, tensors: list[tuple[str, Shape]], layers: int, seed: int) -> None:
    """A safetensors file: the header's length, the header as JSON, the numbers in little-endian order.

    Raises OSError when the disk does not take it."""
    draw = random.Random(seed)  # noqa: S311 - weights, not secrets
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in tensors:
        end = begin + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the numbers begin on a multiple of eight bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, shape in tensors:
            numbers = values(name, shape, layers, draw)
            if sys.byteorder == "big":
                numbers.byteswap()
            numbers.tofile(file)
