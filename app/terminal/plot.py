"""Curves in a terminal: braille dots where colours tell them apart, letters where there are no colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

DOTS_ACROSS, DOTS_DOWN = 2, 4  # in one braille character
DOT_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # by column, then by row from the top
BRAILLE = 0x2800
COLOURS = ("cyan", "yellow", "magenta", "green", "blue", "red")
LETTERS = "abcdef"
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """`points` are (x, y) by rising x. `joined`: a line through them, else each by itself."""

    name: str
    points: Sequence[Point]
    joined: bool = True


def draw(curves: Sequence[Curve], width: int, height: int, *, colours: bool = True) -> list[Text]:
    """At most `height` lines of `width` columns: the plot, its axis and its legend; none without points."""
    curves = [
        Curve(curve.name, [p for p in curve.points if all(map(math.isfinite, p))], curve.joined)
        for curve in curves
    ]
    every = [point for curve in curves for point in curve.points]
    if not every or height < 4 or width < 20:
        return []
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    low, high = min(y for _, y in every), max(y for _, y in every)
    if high == low:  # a flat line in the middle
        low, high = low - (abs(low) * 0.05 or 1), high + (abs(high) * 0.05 or 1)
    labels = [f"{value:.4g}" for value in (high, (high + low) / 2, low)]
    margin = max(map(len, labels))
    across, down = width - margin - 2, height - 2
    grid = _Grid(across, down, fine=colours)
    for number, curve in enumerate(curves):
        places = [
            grid.place((x - left) / (right - left or 1), (high - y) / (high - low)) for x, y in curve.points
        ]
        grid.mark(places, number, curve.joined)
    lines = []
    for row in range(down):
        label = {0: labels[0], (down - 1) // 2: labels[1], down - 1: labels[2]}.get(row, "")
        lines.append(Text.assemble((f"{label:>{margin}} │", "dim"), grid.line(row)))
    first, last = f"{left:,.0f}", f"{right:,.0f}"
    axis = f"{'':>{margin}} └{first} {'─' * max(0, across - len(first) - len(last) - 2)} {last}"
    lines.append(Text(axis, style="dim"))
    lines.append(_legend(curves, margin, colours))
    return lines


def _legend(curves: Sequence[Curve], margin: int, colours: bool) -> Text:
    legend = Text(" " * (margin + 2))
    for number, curve in enumerate(curves):
        sign = "━ " if colours else f"{_letter(number)} = "
        legend.append(sign + curve.name + "   ", _colour(number) if colours else "")
    legend.rstrip()
    return legend


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _letter(number: int) -> str:
    return LETTERS[number % len(LETTERS)]


class _Grid:
    """Cells of characters; `fine`: each with eight dots, and the colour of the last curve that touched it."""

    def __init__(self, across: int, down: int, *, fine: bool) -> None:
        self._across, self._down, self._fine = across, down, fine
        self._dots_across, self._dots_down = (DOTS_ACROSS, DOTS_DOWN) if fine else (1, 1)
        self._bits = [[0] * across for _ in range(down)]
        self._owner = [[-1] * across for _ in range(down)]

    def place(self, x: float, y: float) -> tuple[int, int]:
        """The dot at these shares of width and height, both from the top left."""
        wide, high = self._across * self._dots_across - 1, self._down * self._dots_down - 1
        return round(x * wide), round(y * high)

    def mark(self, places: Sequence[tuple[int, int]], number: int, joined: bool) -> None:
        for at, (x, y) in enumerate(places):
            from_x, from_y = places[at - 1] if joined and at else (x, y)
            length = max(abs(x - from_x), abs(y - from_y))
            for part in range(length + 1):
                share = part / length if length else 1
                self._dot(round(from_x + (x - from_x) * share), round(from_y + (y - from_y) * share), number)

    def _dot(self, x: int, y: int, number: int) -> None:
        column, row = x // self._dots_across, y // self._dots_down
        self._bits[row][column] |= DOT_BITS[x % DOTS_ACROSS][y % DOTS_DOWN]
        self._owner[row][column] = number

    def line(self, row: int) -> Text:
        line = Text()
        for bits, owner in zip(self._bits[row], self._owner[row], strict=True):
            if owner < 0:
                line.append(" ")
            elif self._fine:
                line.append(chr(BRAILLE | bits), _colour(owner))
            else:
                line.append(_letter(owner))
        return line
