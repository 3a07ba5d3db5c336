"""The likeliest token without the whole product: int8 says which tokens it can be, float32 which one it is.

The output embedding is the half of a small model's decode step, and for greedy choices all but one of its
50,257 numbers are thrown away. Here all are computed from weights and states rounded to 8 bits, at a quarter
of the memory and with the processor's int8 instructions. How far such a number can be from the true one has a
bound (Cauchy-Schwarz: for weights w and states x, rounded to w' and x',
|w·x - w'·x'| <= |w - w'| |x| + |w'| |x - x'|), so whatever the bound lets reach the best is computed again
from the weights themselves. Nothing is guessed: the answer is the full product's, but for ties in its last
bit.

Bounded search of the largest inner product is old (Auvolat et al. 2015, arXiv:1507.05910, and those they
name); rounding as the screen is what fits a processor.
"""

from collections.abc import Sequence
from typing import Any

import torch

# Tokens side by side, of which first the best is looked at. Of 64 rows of a random model nine blocks each are
# in question: with 256 tokens a block all that follows the product takes 1.6 ms, with 64 it takes 1.1.
BLOCK = 64
# More tokens than these in question for a row, and the full product is cheaper: the model is not sure at all.
MOST = 512
# float32 sums of the rounded products, and the bounds' own arithmetic: far above what they can be wrong by.
SLACK = 1e-4
NOWHERE = -1e30  # of places behind the last token: finite, for infinity times 0 is not a number


class Screen:
    """Finds the largest of `weight @ x`; `weight` is (vocabulary size, width), float32, on a CPU."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight
        self._size, width = weight.shape
        blocks = -(-self._size // BLOCK)
        rounded = torch.zeros(blocks * BLOCK, width, dtype=torch.int8)
        self._lost = torch.zeros(blocks, BLOCK)  # |w - w'| of each token
        self._norm = torch.zeros(blocks, BLOCK)  # |w'|
        scale = torch.ones(blocks * BLOCK)
        # What all tokens have in common adds the same to every number: without it the bound is tighter.
        common = weight.mean(0)
        for start in range(0, self._size, BLOCK):  # by pieces: no second copy of the weights
            own = weight[start : start + BLOCK] - common
            place = slice(start, start + own.shape[0])
            scale[place] = own.abs().amax(1).clamp(min=1e-12) / 127
            near = (own / scale[place, None]).round()
            rounded[place] = near.to(torch.int8)
            near *= scale[place, None]
            self._lost[start // BLOCK, : own.shape[0]] = (own - near).norm(dim=1)
            self._norm[start // BLOCK, : own.shape[0]] = near.norm(dim=1)
        self._bounds = torch.stack([self._lost.amax(1), self._norm.amax(1)])
        self._steps, self._middle = _levels()
        self._packed = _ops().qlinear_prepack(rounded, [16, width])
        self._scale, self._zeros = scale, torch.zeros(len(scale), dtype=torch.long)
        self._nowhere = torch.zeros(len(scale))
        self._nowhere[self._size :] = NOWHERE

    @property
    def size(self) -> int:
        """Bytes."""
        beside = (self._lost, self._norm, self._bounds, self._scale, self._zeros, self._nowhere)
        return int(self._packed.numel()) + sum(each.nbytes for each in beside)

    def best(self, states: torch.Tensor) -> list[int] | None:
        """The token of each row of (rows, width), the first one of equals; None where too many are near,
        or numbers are not finite."""
        every = torch.get_num_threads()
        torch.set_num_threads(1)  # all but the product is small: that threads meet takes longer
        try:
            whole = states.abs().amax(1, keepdim=True).clamp(min=1e-30)
            exact = states * (self._steps / whole)
            near = exact.round()
            rounded = (near + self._middle).to(torch.uint8)
            torch.set_num_threads(every)
            scores = self._multiply(rounded).view(len(states), -1, BLOCK)
            highest = scores.amax(2)
            torch.set_num_threads(1)
            return self._choose(states, exact, exact - near, scores, highest)
        finally:
            torch.set_num_threads(every)

    def _choose(
        self,
        states: torch.Tensor,
        exact: torch.Tensor,
        lost: torch.Tensor,
        scores: torch.Tensor,
        highest: torch.Tensor,
    ) -> list[int] | None:
        """From `scores` (rows, blocks, BLOCK), the `highest` of each block, (rows, blocks), and what the
        states have lost in rounding."""
        length = exact.norm(dim=1)[:, None] * (1 + SLACK)
        short = lost.norm(dim=1)[:, None] + SLACK * length
        # First by blocks: how high the best of each may be, and how high the best of all must be.
        spread = torch.cat([length, short], 1)
        least = torch.addmm(highest, spread, self._bounds, alpha=-1).amax(1)
        rows, blocks = (torch.addmm(highest, spread, self._bounds) >= least[:, None]).nonzero(as_tuple=True)
        if len(rows) > MOST * len(states):
            return None
        bound = length[rows] * self._lost[blocks] + short[rows] * self._norm[blocks]
        found, places = (scores[rows, blocks] + bound >= least[rows, None]).nonzero(as_tuple=True)
        if len(found) > MOST * len(states):
            return None
        rows, tokens = rows[found], blocks[found] * BLOCK + places
        values = (self._weight[tokens] * states[rows]).sum(1, dtype=torch.float64)
        return _largest(len(states), rows.tolist(), tokens.tolist(), values.tolist())

    def _multiply(self, states: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = _ops().qlinear_pointwise(
            states, 1.0, self._middle, self._packed, self._scale, self._zeros, self._nowhere,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return product


def _largest(
    rows: int, of: Sequence[int], tokens: Sequence[int], values: Sequence[float]
) -> list[int] | None:
    """The token with the largest value of each row; they come in the order of rows, then tokens. None where a
    row has none, as with numbers that are not finite."""
    best, highest = [0] * rows, [float("-inf")] * rows
    for row, token, value in zip(of, tokens, values, strict=True):
        if value > highest[row]:
            best[row], highest[row] = token, value
    return best if min(highest) > float("-inf") else None


def _levels() -> tuple[int, int]:
    """Into how many steps up and down states are rounded, and the middle.

    Without int8 dot products in the processor two products are added up in 16 bits, where 255 * 127 * 2 would
    be cut off and 127 * 127 * 2 is not.
    """
    able = torch.cpu.get_capabilities()
    fine = any(able.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return (127, 128) if fine else (63, 64)


def _ops() -> Any:
    """oneDNN's int8 product, which torch's compiler calls by these names; pinned with torch."""
    return torch.ops.onednn
