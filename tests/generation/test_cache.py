"""Rows of a timeline that come, grow and go, and what each of them sees."""

import random

import pytest
import torch

from worker.generation import cache
from worker.generation.cache import Look, States, Timeline

LAYERS, HEADS, SIZE = 2, 2, 3


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys so small that no stretch would be worth an operation."""
    monkeypatch.setattr(cache, "WORTH", 10 * 2 * HEADS * SIZE * 4)


def states(name: int, length: int) -> States:
    """Keys that say whose and which they are; values their negative."""
    keys = torch.arange(length).float()[None, None, :, None] + 1000.0 * name
    keys = keys.expand(1, HEADS, length, SIZE)
    return [(keys + layer / 8, -keys - layer / 8) for layer in range(LAYERS)]


def seen_by(row: int, timeline: Timeline, looks: list[Look]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each layer: the row's unmasked keys and values, (columns, heads, size)."""
    (look,) = [look for look in looks if look.rows.start <= row < look.rows.stop]
    found = []
    for layer in timeline.layers:
        keys, values = (each[row - look.rows.start] for each in layer.seen(look.rows, look.columns))
        start = look.starts[(row - look.rows.start) * HEADS]
        cells = look.cells[start : start + HEADS * keys.shape[1]]
        assert torch.equal(layer.values.flatten(0, 2)[cells].view_as(values), values), "one by one"
        shown = torch.ones(keys.shape[1], dtype=torch.bool)
        if look.bias is not None:
            shown = look.bias[row - look.rows.start, 0, 0] == 0
        found.append((keys[:, shown].transpose(0, 1), values[:, shown].transpose(0, 1)))
    return found


def area(look: Look) -> int:
    return int(look.rows.stop - look.rows.start) * int(look.columns.stop - look.columns.start)


def test_every_row_sees_its_own_columns_whoever_comes_and_goes() -> None:
    chance = random.Random(5)
    timeline = Timeline()
    rows: list[int] = []  # names, by row
    lengths: dict[int, int] = {}
    read = whole = 0
    for turn in range(400):
        while rows and (len(rows) > 30 or chance.random() < 0.3):
            gone = chance.randrange(len(rows))
            name = rows[gone]
            for old, new in timeline.remove(gone):
                rows[new] = rows[old]
            rows.pop()
            assert name not in rows
            assert timeline.rows == len(rows)
        for name in range(2 * turn, 2 * turn + chance.randint(0, 2)):
            lengths[name] = chance.choice([1, 2, 5, 9, 40])
            timeline.insert(states(name, lengths[name]), lengths[name])
            rows.append(name)
        if not rows:
            continue
        timeline.begin(torch.device("cpu"))
        looks = timeline.looks()
        for place, layer in enumerate(timeline.layers):
            numbers = [1000.0 * name + lengths[name] + place / 8 for name in rows]
            fresh = torch.tensor(numbers)[:, None, None].expand(-1, HEADS, SIZE)
            layer.append(fresh, -fresh)
        for row, name in enumerate(rows):
            for (keys, values), (wanted, _) in zip(
                seen_by(row, timeline, looks), states(name, lengths[name] + 1), strict=True
            ):
                assert torch.equal(keys, wanted[0].transpose(0, 1))
                assert torch.equal(values, -keys)
            lengths[name] += 1
        read += sum(area(look) for look in looks)
        whole += len(rows) * (timeline.width + 1)
        timeline.advance()
    assert read < whole


def test_long_rows_are_read_together_however_long_rows_have_come_and_gone() -> None:
    """Each answer ends at a length of its own and another begins; the order must not wear off."""
    chance = random.Random(6)
    timeline = Timeline()
    ends: list[int] = []
    read = whole = 0
    for turn in range(600):
        for row in sorted((r for r, end in enumerate(ends) if timeline.lengths[r] >= end), reverse=True):
            for old, new in timeline.remove(row):
                ends[new] = ends[old]
            ends.pop()
        for _ in range(min(2, 32 - len(ends))):
            timeline.insert(states(0, 4), 4)
            ends.append(chance.randint(16, 96))
        timeline.begin(torch.device("cpu"))
        if turn > 100:
            read += sum(area(look) for look in timeline.looks())
            whole += timeline.rows * (timeline.width + 1)
        timeline.advance()
    assert 0.5 < read / whole < 0.75


def test_rows_of_about_one_length_are_one_look() -> None:
    timeline = Timeline()
    for name in range(16):
        timeline.insert(states(name, 41 - name // 8), 41 - name // 8)
    timeline.begin(torch.device("cpu"))
    assert [look.rows for look in timeline.looks()] == [slice(0, 16)]
