"""What is shown: plain lines and tables for people, JSON for programs; no colour where nobody sees it.

Rich heeds NO_COLOR and knows whether the output is a terminal.
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# All of C0 and C1 but line break and tab, and the marks that turn the direction of text: what others wrote
# must not steer the terminal. Halves of surrogate pairs cannot be written at all.
UNSEEMLY = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
PIPE_WIDTH = 1000  # columns where no terminal sets them: a table for a program is not cut
STYLES = {
    "queued": "yellow",
    "validating_files": "yellow",
    "running": "cyan",
    "paused": "magenta",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "dim",
    "processed": "green",
    "error": "red",
    "warn": "yellow",
    "info": "",
}


def console(stderr: bool = False) -> Console:
    """Made when it is needed: the stream may have been exchanged, and terminals change their size."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def plain(value: object) -> str:
    """Without what a terminal would obey."""
    return UNSEEMLY.sub("\N{REPLACEMENT CHARACTER}", str(value))


def say(text: str | Text, style: str = "", *, stderr: bool = False) -> None:
    """A line of its own, never cut to the terminal's width."""
    shown = text if isinstance(text, Text) else plain(text)
    console(stderr).print(shown, style=style, soft_wrap=True)


def note(text: str) -> None:
    """What is not the result goes to the error output, so that the result can be piped."""
    say(text, "dim", stderr=True)


def complain(sentence: str) -> None:
    """Without colours and lines of its own: it may be read by a program."""
    print(f"finetuned: {plain(sentence)}", file=sys.stderr)


def show_json(document: object, *, line: bool = False) -> None:
    """One document; ASCII, so that no encoding and no terminal can be in its way."""
    print(json.dumps(document, indent=None if line else 2), flush=line)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """`>` before a column's name sets it flush right; cells may be Text. `empty` is said without rows."""
    if not rows:
        note(empty)
        return
    made = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        made.add_column(
            name.removeprefix(">"),
            justify="right" if name.startswith(">") else "left",
            overflow="fold",
            no_wrap=number == 0,  # the id is for copying
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(plain(cell)) for cell in row))
    console().print(made)


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """Names and values, one a line; a value of None is left out."""
    shown = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        text = value if isinstance(value, Text) else Text(plain(value))
        say(Text.assemble((f"{name:<{width}}  ", "dim"), text))


def status(word: str) -> Text:
    return Text(plain(word), style=STYLES.get(word, ""))


def number(value: Any, digits: int = 4) -> str:
    """A loss or a share; what is unknown is a dash."""
    return "-" if not isinstance(value, int | float) else f"{value:.{digits}f}"


def size(count: int | None) -> str:
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def span(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def ago(moment: int | None) -> str:
    """How long ago a time of the wire was, in its largest unit."""
    if moment is None:
        return "-"
    return " ".join(span(time.time() - moment).split()[:2]) + " ago"
