"""How fast and in how much memory a large file is checked, and a report on it made.

`python -m benchmarks.data --megabytes 1000 --rows texts.jsonl` repeats the rows, each with its number.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from app.dataset import Checker
from app.inspection.inspector import ask_and_wait
from app.recipe import Recipe
from app.tiny import model as tiny

CHUNK = 1024 * 1024


def rows(source: Path | None) -> Iterator[bytes]:
    texts = ["a row of twenty words or so " * 5]
    if source is not None:
        texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    for number in count():
        yield json.dumps({"text": f"{number}: {texts[number % len(texts)]}"}).encode() + b"\n"


def write(path: Path, source: Path | None, size: int) -> None:
    with path.open("wb") as file:
        for row in rows(source):
            file.write(row)
            if file.tell() >= size:
                return


def peak(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def check(path: Path) -> None:
    """As an upload does: chunk by chunk."""
    before, began, worked = peak(resource.RUSAGE_SELF), time.perf_counter(), time.process_time()
    checker = Checker("jsonl")
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            checker.feed(chunk)
    report = checker.finish()
    took, busy = time.perf_counter() - began, time.process_time() - worked
    size, after = report.bytes / 1e6, peak(resource.RUSAGE_SELF)
    print(
        f"check: {report.rows:,} rows, {size / took:.1f} MB/s, {size / busy:.1f} MB a processor second,"
        f" peak {after:.0f} MiB (before: {before:.0f})"
    )


def report(path: Path, model: Path) -> None:
    began = time.perf_counter()
    subject = {"path": str(path), "format": "jsonl", "columns": None, "folder": str(model)}
    recipe = Recipe().model_dump(mode="json")
    found = ask_and_wait("report", 900, **subject, validation=None, recipe=recipe)
    took = time.perf_counter() - began
    print(
        f"report: {found['rows']:,} rows, complete: {found['complete']}, {took:.0f} s,"
        f" {path.stat().st_size / 1e6 / took:.1f} MB/s, peak {peak(resource.RUSAGE_CHILDREN):.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rows", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write(path, asked.rows, asked.megabytes * 1_000_000)
        check(path)
        report(path, tiny.ensure(Path(folder) / tiny.NAME))


if __name__ == "__main__":
    main()
