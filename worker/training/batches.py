"""Examples laid out as tensors: packed into rows without padding, or one a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from worker.training.windows import Mask, Tokens

# apart: a row for each example; rows: packed, about as wide as the longest; line: all in one row.
Layout = Literal["apart", "rows", "line"]
# A row is at least this wide, so that a batch of short texts still makes few rows.
MIN_ROW = 128


@dataclass(frozen=True)
class Batch:
    """What one micro-step sees. Positions restart at 0 for every example; None: each row is one example."""

    ids: torch.Tensor  # rows x width
    positions: torch.Tensor | None  # rows x width
    sources: torch.Tensor  # flat indices of the hidden states that predict something
    targets: torch.Tensor  # the token each of them should predict
    owners: torch.Tensor  # which of the examples each target is of
    tokens: int  # real ones
    documents: list[int] | None = None  # in a line: the examples' lengths, in its order
    reference: torch.Tensor | None = None  # each example's log-likelihood before training, fp64

    def to(self, device: torch.device) -> "Batch":
        if device.type == "cpu":
            return self
        positions = None if self.positions is None else _move(self.positions, device)
        reference = None if self.reference is None else _move(self.reference, device)
        ids, sources, targets, owners = (
            _move(t, device) for t in (self.ids, self.sources, self.targets, self.owners)
        )
        return Batch(ids, positions, sources, targets, owners, self.tokens, self.documents, reference)


def _move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True)


@lru_cache(maxsize=1)  # asked for at every step; of millions of examples it takes a second
def order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of an epoch: keyed by seed and epoch alone, so that nothing else can move it."""
    found: NDArray[np.int64] = np.random.default_rng([seed, 0, epoch]).permutation(count)
    found.setflags(write=False)
    return found


def lay(
    examples: Sequence[tuple[Tokens, Mask]],
    layout: Layout,
    max_length: int,
    pad: int,
    reference: Sequence[float] = (),
) -> Batch:
    """Lays examples into rows; what fills a row up is never a target and never seen by one."""
    lengths = [len(tokens) for tokens, _ in examples]
    rows = _rows(lengths, layout, max_length)
    width = max(sum(lengths[i] for i in row) for row in rows)
    ids = np.full((len(rows), width), pad, np.int64)
    positions = np.zeros((len(rows), width), np.int64)
    trained = np.zeros((len(rows), width), np.bool_)
    owners = np.zeros((len(rows), width), np.int64)
    for row, members in enumerate(rows):
        at = 0
        for i in members:
            tokens, mask = examples[i]
            end = at + len(tokens)
            ids[row, at:end], trained[row, at:end] = tokens, mask
            positions[row, at:end] = np.arange(len(tokens))
            owners[row, at:end] = i
            at = end
        positions[row, at:] = np.arange(width - at)  # the filling is a document of its own
    targets = np.flatnonzero(trained)
    packed = layout == "line" or any(len(row) > 1 for row in rows)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(positions) if packed else None,
        torch.from_numpy(targets - 1),
        torch.from_numpy(ids.reshape(-1)[targets]),
        torch.from_numpy(owners.reshape(-1)[targets]),
        sum(lengths),
        lengths if layout == "line" else None,
        torch.tensor(reference, dtype=torch.float64) if reference else None,
    )


def _rows(lengths: Sequence[int], layout: Layout, max_length: int) -> list[list[int]]:
    everything = list(range(len(lengths)))
    if layout == "line":
        return [everything]
    return _pack(lengths, max_length) if layout == "rows" else [[i] for i in everything]


def _pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """First fit, longest first. Rows are as wide as the longest example, so that attention stays cheap."""
    width = min(max_length, max(MIN_ROW, *lengths)) if len(lengths) > 1 else max_length
    rows: list[list[int]] = []
    free: list[int] = []
    descending: NDArray[np.int64] = np.argsort([-length for length in lengths], kind="stable")
    for i in descending.tolist():
        row = next((r for r, room in enumerate(free) if room >= lengths[i]), None)
        if row is None:
            rows.append([])
            free.append(width)
            row = len(rows) - 1
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows
