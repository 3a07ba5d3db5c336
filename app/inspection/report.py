"""A whole file in figures and findings: one pass, in memory that does not grow with it and bounded time."""

import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import dataset
from app.dataset import Chat, DatasetError, Example, Pair, Preference, Text
from app.inspection import patterns
from app.inspection.findings import VERSION, Findings
from app.inspection.lens import Lens, Seen
from app.inspection.refusal import Refused
from app.inspection.seen import Digest, Hashes
from app.recipe import Recipe
from app.rows import Found

SCAN_SECONDS = 240  # then the report is of the rows until there
TOKEN_BYTES = 16_000_000  # of a larger file every n-th row is encoded
SCRIPT_BYTES = 2_000_000  # of a larger file every n-th row's letters are counted
FEW_ROWS = 10
SHORT = 2  # characters
LOOK_AT_CLOCK = 256  # rows
Said = dict[str, Any]


@dataclass
class Content:
    """A row as a reader sees it. `asked` is empty where nothing is."""

    texts: list[str]
    asked: str
    answers: list[str]
    unanswered: bool = False


def content(example: Example) -> Content:
    match example:
        case Text():
            return Content([example.text], "", [example.text])
        case Pair():
            return Content([example.prompt, example.completion], example.prompt, [example.completion])
        case Preference():
            before = [_said(message) for message in example.messages]
            answers = ["\n".join(map(_said, given)) for given in (example.preferred, example.rejected)]
            return Content([*before, *answers], "\n".join(before), answers)
        case Chat():
            said = [_said(message) for message in example.messages]
            learned = [
                at
                for at, message in enumerate(example.messages)
                if message["role"] == "assistant" and message.get("weight") != 0
            ]
            last = max(learned)
            return Content(
                said,
                "\n".join(said[:last]),
                [said[at] for at in learned],
                unanswered=example.messages[-1]["role"] != "assistant",
            )


def _said(message: dict[str, Any]) -> str:
    found = message.get("content")
    if isinstance(found, list):
        found = "".join(part["text"] for part in found)
    return found if isinstance(found, str) else str(message.get("tool_calls") or "")


class Scan:
    """Goes through the training file, then through the validation file; hands out the rows to be encoded."""

    def __init__(self, size: int, special: list[str]) -> None:
        self.findings, self.characters = Findings(), Counter[int]()
        self.rows = 0
        self.complete, self._is_plain = True, False
        self.stride = -(-size // TOKEN_BYTES)
        self._letters = Counter[str]()
        self._script_stride = -(-size // SCRIPT_BYTES)
        self._texts = patterns.Rows(special)
        self._rows, self._asked = Hashes(), Hashes()
        self._until = time.monotonic() + SCAN_SECONDS
        self._count, self._blank, self._digest = 0, True, Digest()

    def read(self, said: Said) -> Iterator[Example]:
        """Every `stride`-th row, or piece of a plain text."""
        pieces, self._is_plain = 0, said["format"] == "text"
        for found in self._find(said):
            if isinstance(found, DatasetError):
                self.findings.add("bad_rows", found.line)
                continue
            example = found.example
            self._take(example)
            if pieces % self.stride == 0:
                # A piece by itself, where not all are encoded: what stands before it is not there.
                alone = self.stride > 1 and isinstance(example, Text)
                yield Text(example.line, example.text) if alone and isinstance(example, Text) else example
            pieces += 1
        self._look_through()
        if self.rows < FEW_ROWS and said["format"] != "text":
            self.findings.add("few_rows", 1)

    def compare(self, said: Said) -> None:
        """Rows of the validation file that were met before."""
        whole = Digest()
        for found in self._find(said):
            if isinstance(found, DatasetError):
                continue
            example = found.example
            if not isinstance(example, Text) or example.first:
                whole = Digest()
            _hash(whole, example, content(example).texts)
            if (not isinstance(example, Text) or example.last) and whole.value() in self._rows:
                self.findings.add("leaked_rows", example.line)

    @property
    def scale(self) -> dict[str, int]:
        """How many rows one of those counted stands for."""
        every = {"duplicate_rows": self._rows.every, "leaked_rows": self._rows.every}
        encoded = dict.fromkeys(("too_long_rows", "lost_answers"), self.stride)
        return {**every, **encoded, "contradictory_answers": self._asked.every}

    def _find(self, said: Said) -> Iterator[Found]:
        for number, found in enumerate(dataset.find(Path(said["path"]), said["format"], said["columns"])):
            if number % LOOK_AT_CLOCK == 0 and time.monotonic() > self._until:
                self.complete = False
                return
            yield found

    def _take(self, example: Example) -> None:
        line, found = example.line, content(example)
        whole = "\n".join(found.texts)
        self._texts.add(line, whole)
        if self._texts.is_full:
            self._look_through()
        first, last = (example.first, example.last) if isinstance(example, Text) else (True, True)
        if first:
            self._count, self._blank, self._digest = 0, True, Digest()
        self._count += sum(map(len, found.texts))
        self._blank = self._blank and not any(answer.strip() for answer in found.answers)
        _hash(self._digest, example, found.texts)
        if last:
            self._end(line, found)

    def _look_through(self) -> None:
        for code, line in self._texts.take(within=self._is_plain):
            self.findings.add(code, line)

    def _end(self, line: int, found: Content) -> None:
        self.characters[self._count] += 1
        if self._blank:
            self.findings.add("empty_answers", line)
        elif self._count and all(len(answer.strip()) <= SHORT for answer in found.answers):
            self.findings.add("short_answers", line)
        if found.unanswered:
            self.findings.add("unanswered_messages", line)
        if self._rows.add(self._digest.value()):
            self.findings.add("duplicate_rows", line)
        elif found.asked.strip():
            asked = Digest()
            asked.add(found.asked)
            if self._asked.add(asked.value()):
                self.findings.add("contradictory_answers", line)
        if self.rows % self._script_stride == 0:
            self._letters.update("\n".join(found.texts)[:20_000])
        self.rows += 1

    def scripts(self) -> Counter[str]:
        """Letters by their script."""
        found = Counter[str]()
        for character, count in self._letters.items():
            if character.isalpha():
                name = unicodedata.name(character, "UNKNOWN").partition(" ")[0]
                found["Han" if name == "CJK" else name.title()] += count
        return found


def _hash(digest: Digest, example: Example, texts: list[str]) -> None:
    """What makes two rows the same."""
    for text in texts:
        digest.add(text)
        if not isinstance(example, Text):
            digest.end_part()


class Measures:
    """Tokens of the rows that were encoded."""

    def __init__(self, findings: Findings) -> None:
        self.lengths = Counter[int]()
        self.tokens = self.trained = self.examples = 0
        self._findings = findings

    def take(self, row: Seen) -> None:
        self.lengths[row.tokens] += 1
        self.tokens += sum(window.stop - window.start for window in row.windows)
        self.trained += row.trained_tokens()
        self.examples += len(row.windows)
        if row.too_long:
            self._findings.add("too_long_rows", row.line)
        if row.too_long and row.trained and not row.windows and row.outcome == "untrained":
            self._findings.add("lost_answers", row.line)


def make(said: Said, recipe: Recipe) -> Said:
    """`said` has path, format, columns, folder or None, validation or None. Raises Refused, EncodingError."""
    try:
        lens = None if said["folder"] is None else Lens(Path(said["folder"]), recipe)
    except ValueError as error:
        raise Refused("invalid_value", str(error), "max_length") from None
    scan = Scan(Path(said["path"]).stat().st_size, [] if lens is None else lens.special())
    measures = Measures(scan.findings)
    if lens is None:
        for _ in scan.read(said):
            pass
    else:
        for row in lens.look(scan.read(said)):
            measures.take(row)
    if said["validation"] is not None:
        scan.compare(said["validation"])
    scripts = scan.scripts()
    letters = sum(scripts.values())
    by_tokens = lens is not None and not (said["format"] == "text" and scan.stride > 1)
    return {
        "version": VERSION,
        "rows": scan.rows,
        "complete": scan.complete,
        "lengths": {
            "unit": "tokens" if by_tokens else "characters",
            **lengths(measures.lengths if by_tokens else scan.characters),
        },
        "tokens": None if lens is None else _tokens(lens, measures, scan),
        "scripts": {
            name: round(count / letters, 4)
            for name, count in scripts.most_common(12)
            if count >= letters / 1000
        },
        "findings": scan.findings.as_json(scan.scale),
    }


def _tokens(lens: Lens, measures: Measures, scan: Scan) -> Said:
    encoded = sum(measures.lengths.values())
    long = sum(count for length, count in measures.lengths.items() if length > lens.max_length)
    return {
        "max_length": lens.max_length,
        "excess_length": lens.recipe.excess_length,
        "total": measures.tokens * scan.stride,
        "trained": measures.trained * scan.stride,
        "examples": measures.examples * scan.stride,
        "estimated": scan.stride > 1,
        "encoded_rows": encoded,
        "too_long_share": round(long / encoded, 4) if encoded else 0.0,
    }


def lengths(counts: Counter[int]) -> Said:
    """Exact, since lengths repeat: a counter of them stays small."""
    rows = sum(counts.values())
    if not rows:
        return {"mean": 0, "median": 0, "p95": 0, "max": 0, "histogram": []}
    histogram = Counter[int]()
    for length, count in counts.items():
        histogram[max(length - 1, 0).bit_length()] += count
    return {
        "mean": round(sum(length * count for length, count in counts.items()) / rows, 2),
        "median": _quantile(counts, rows, 0.5),
        "p95": _quantile(counts, rows, 0.95),
        "max": max(counts),
        "histogram": [{"up_to": 2**power, "rows": histogram[power]} for power in range(max(histogram) + 1)],
    }


def _quantile(counts: Counter[int], rows: int, share: float) -> int:
    """The smallest length that this share of the rows does not exceed."""
    seen = 0
    for length in sorted(counts):
        seen += counts[length]
        if seen >= share * rows:
            return length
    return max(counts)
