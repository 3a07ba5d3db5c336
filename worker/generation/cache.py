"""The keys and values of all running sequences of one model, side by side on one timeline.

Every sequence ends at the same column, `now`, however long it is: to the model the batch is left-padded,
which all architectures understand, and one decode step writes one column for all rows. A newcomer is laid so
that its prompt ends at `now`; a row that leaves is filled with the last one, so that the running rows are
always the first ones and the model reads views, never copies.
"""

from typing import Any, TypeAlias

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

# Keys and values of each layer, (rows, heads, columns, head size).
States: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]

# Columns added when the buffer is full: the copy of the whole cache is then paid once in so many steps.
SPARE_COLUMNS = 64


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # of its __init_subclass__
    """One attention layer; `keys` and `values` are buffers of (rows, heads, columns, head size)."""

    keys: torch.Tensor
    values: torch.Tensor

    is_sliding = False  # sliding windows are a matter of the mask: all columns are kept

    def __init__(self, timeline: "Timeline", keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.timeline = timeline
        self.keys = _like(keys, 1, SPARE_COLUMNS)
        self.values = _like(values, 1, SPARE_COLUMNS)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the buffers were made by the first prompt."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.append(key_states[:, :, 0], value_states[:, :, 0])

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write column `now`, (rows, heads, head size) of each; the columns that the rows see, views."""
        line = self.timeline
        self.keys[: line.rows, :, line.now] = keys
        self.values[: line.rows, :, line.now] = values
        seen = slice(line.now - line.width, line.now + 1)
        return self.keys[: line.rows, :, seen], self.values[: line.rows, :, seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.timeline.width + query_length, 0

    def get_seq_length(self) -> int:
        return self.timeline.width

    def get_max_length(self) -> int:
        return -1


class Timeline(Cache):
    """Holds `rows` sequences of `lengths` tokens, which all end at column `now`."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.layers: list[_Layer] = []  # type: ignore[assignment]  # narrower
        self.lengths: list[int] = []
        self.now = 0
        self.positions = torch.empty(0, dtype=torch.long)
        self.mask = torch.empty(0, 0, dtype=torch.bool)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Columns in use: the length of the longest row."""
        return max(self.lengths, default=0)  # 3 µs for 64 rows

    def insert(self, states: States, length: int) -> None:
        """Append a row holding the `length` columns of `states`, those of one sequence."""
        if not self.layers:
            self.layers = [_Layer(self, keys, values) for keys, values in states]
        if not self.rows:
            self.now = 0  # nothing to keep: begin anew on the left
        self._make_room(self.rows + 1, max(self.width, length))
        place = slice(self.now - length, self.now)
        for layer, (keys, values) in zip(self.layers, states, strict=True):
            layer.keys[self.rows, :, place] = keys[0]
            layer.values[self.rows, :, place] = values[0]
        self.lengths.append(length)

    def remove(self, row: int) -> None:
        """Forget a row; the last row takes its number."""
        last = self.rows - 1
        if row != last:
            used = slice(self.now - self.lengths[last], self.now)
            for layer in self.layers:
                layer.keys[row, :, used] = layer.keys[last, :, used]
                layer.values[row, :, used] = layer.values[last, :, used]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def begin(self, device: torch.device) -> None:
        """Make room for one more column, and say what a step needs to know of the rows.

        `positions` (rows,) of the new tokens, `mask` (rows, width + 1): True where a row has a token.
        """
        self._make_room(self.rows, self.width, spare=1)
        self.positions = torch.tensor(self.lengths, dtype=torch.long, device=device)
        columns = torch.arange(self.width + 1, device=device)
        self.mask = columns >= self.width - self.positions[:, None]

    @property
    def bias(self) -> torch.Tensor | None:
        """The mask as attention adds it, (rows, 1, 1, width + 1); None where all rows are of one length."""
        if min(self.lengths) == self.width:
            return None
        zeros = torch.zeros(self.mask.shape, dtype=self.layers[0].keys.dtype, device=self.mask.device)
        return zeros.masked_fill_(~self.mask, float("-inf"))[:, None, None]

    def advance(self) -> None:
        """The forward pass has written column `now` of every row."""
        self.now += 1
        self.lengths = [length + 1 for length in self.lengths]

    def _make_room(self, rows: int, width: int, spare: int = 0) -> None:
        """Give all layers at least so many rows, `width` columns left of `now` and `spare` right of it."""
        keys = self.layers[0].keys
        if rows <= keys.shape[0] and width <= self.now and self.now + spare <= keys.shape[2]:
            return
        columns = width + max(SPARE_COLUMNS, width // 2)
        if rows > keys.shape[0]:
            rows = max(rows, 2 * keys.shape[0])
        rows = max(rows, keys.shape[0])
        old, new = slice(self.now - self.width, self.now), slice(width - self.width, width)
        for layer in self.layers:
            layer.keys = _moved(layer.keys, rows, columns, self.rows, old, new)
            layer.values = _moved(layer.values, rows, columns, self.rows, old, new)
        self.now = width


def states_of(cache: Cache) -> States:
    layers: list[Any] = cache.layers
    return [(layer.keys, layer.values) for layer in layers]


def _like(states: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Zeros, for a masked column must hold finite numbers: 0 times NaN is NaN."""
    return states.new_zeros((rows, states.shape[1], columns, states.shape[3]))


def _moved(states: torch.Tensor, rows: int, columns: int, used: int, old: slice, new: slice) -> torch.Tensor:
    moved = _like(states, rows, columns)
    moved[:used, :, new] = states[:used, :, old]
    return moved
