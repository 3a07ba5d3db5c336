"""The keys and values of all running sequences of one model, side by side on one timeline.

Every sequence ends at the same column, `now`, however long it is: to the model the batch is left-padded,
which all architectures understand, and one decode step writes one column for all rows. A newcomer is laid so
that its prompt ends at `now`; a row that leaves is filled with another, so that the running rows are always
the first ones and the model reads views, never copies.

Attention reads every column of the rows that it is given together, also those that the mask hides, and with
many rows reading takes most of its time. So long rows are kept together, and short ones: the rows are a few
stretches, about from the longest to the shortest, each as wide as its own longest row.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

# Keys and values of each layer, (rows, heads, columns, head size).
States: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]

# Columns added when the buffer is full: the copy of the whole cache is then paid once in so many steps.
SPARE_COLUMNS = 64
# Stretches of rows on a CPU, and rows of one at least. Each takes an operation more in every layer; with rows
# of all ages, four stretches read 5/8 of the columns that one would, and eight 9/16. A card, which reads
# fast, has one.
STRETCHES = 4
ROWS = 4
# A stretch is read with the one before where that reads fewer bytes more than these in a layer: an attention
# of its own, five operations, takes as long. With 400,000 a step of 16 rows takes 2 % more of a processor.
WORTH = 1_200_000


@dataclass(frozen=True)
class Look:
    """What some rows see: `rows` and `columns` of the buffers; `bias`, (rows, heads, 1, columns), hides what
    is not theirs, and is None where all of it is. `cells` are the same places one by one, in a buffer taken
    as (cells, head size); those of each row's head begin at one of `starts`."""

    rows: slice
    columns: slice
    bias: torch.Tensor | None
    cells: torch.Tensor
    starts: torch.Tensor


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
        self.append(key_states[:, :, 0], value_states[:, :, 0])
        return self.seen(slice(self.timeline.rows), self.timeline.columns)

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write column `now`, (rows, heads, head size) of each."""
        line = self.timeline
        self.keys[: line.rows, :, line.now] = keys
        self.values[: line.rows, :, line.now] = values

    def seen(self, rows: slice, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Views."""
        return self.keys[rows, :, columns], self.values[rows, :, columns]

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

    @property
    def columns(self) -> slice:
        """Those that a step looks at: all in use, and the one that it writes."""
        return slice(self.now - self.width, self.now + 1)

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

    def remove(self, row: int) -> list[tuple[int, int]]:
        """Forget a row. Others take its number and one another's: these to those, one after the other.

        Every stretch behind gives its longest row to the one before, and the last row fills the last gap.
        """
        gap, moved = row, []
        for stretch in self._stretches():
            if stretch.start > gap:
                longest = max(range(stretch.start, stretch.stop), key=self.lengths.__getitem__)
                moved.append((longest, gap))
                gap = longest
        if gap != self.rows - 1:
            moved.append((self.rows - 1, gap))
        for old, new in moved:
            used = slice(self.now - self.lengths[old], self.now)
            for layer in self.layers:
                layer.keys[new, :, used] = layer.keys[old, :, used]
                layer.values[new, :, used] = layer.values[old, :, used]
            self.lengths[new] = self.lengths[old]
        self.lengths.pop()
        return moved

    def begin(self, device: torch.device) -> None:
        """Make room for one more column, and say what a step needs to know of the rows.

        `positions` (rows,) of the new tokens, `mask` (rows, width + 1): True where a row has a token.
        """
        self._make_room(self.rows, self.width, spare=1)
        self.positions = torch.tensor(self.lengths, dtype=torch.long, device=device)
        columns = torch.arange(self.width + 1, device=device)
        self.mask = columns >= self.width - self.positions[:, None]

    def looks(self) -> list[Look]:
        """What the rows see in this step, by stretches."""
        bias, keys = self._bias(), self.layers[0].keys
        cell = 2 * keys.shape[1] * keys.shape[3] * keys.element_size()
        found: list[tuple[slice, int]] = []
        for rows in self._stretches():
            width = max(self.lengths[rows])
            if found and 0 <= (found[-1][1] - width) * (rows.stop - rows.start) * cell < WORTH:
                rows, width = slice(found[-1][0].start, rows.stop), found.pop()[1]
            found.append((rows, width))
        return [self._look(rows, width, bias) for rows, width in found]

    def _look(self, rows: slice, width: int, bias: torch.Tensor) -> Look:
        columns = slice(self.now - width, self.now + 1)
        hides = min(self.lengths[rows]) < width
        _, heads, size, _ = self.layers[0].keys.shape
        first = size * torch.arange(rows.start * heads, rows.stop * heads, device=bias.device)
        cells = (first[:, None] + torch.arange(columns.start, columns.stop, device=bias.device)).flatten()
        starts = torch.arange(0, len(cells), width + 1, device=bias.device)
        return Look(rows, columns, bias[rows, :, :, self.width - width :] if hides else None, cells, starts)

    def _bias(self) -> torch.Tensor:
        """The mask as attention adds it, (rows, heads, 1, width + 1)."""
        keys, mask = self.layers[0].keys, self.mask[:, None, None]
        bias = keys.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
        return bias.expand(-1, keys.shape[1], -1, -1).contiguous()

    def _stretches(self) -> list[slice]:
        on_cpu = self.layers[0].keys.device.type == "cpu"
        size = max(ROWS, -(-self.rows // STRETCHES)) if on_cpu else self.rows
        return [slice(start, min(start + size, self.rows)) for start in range(0, self.rows, size)]

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
