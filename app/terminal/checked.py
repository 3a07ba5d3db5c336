"""A file's report and its preview on a terminal: findings by weight, tokens by whether they are learned."""

from typing import TYPE_CHECKING

from rich.text import Text

from app.terminal import screen
from app.terminal.outcome import Failure

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

TRIES = 60  # of 20 s each: a report takes five minutes at most
BARS = " ▁▂▃▄▅▆▇█"
LEARNED, READ = "bold green", "dim"


def wait_for_report(api: "Api", file_id: str, question: "JsonObject") -> "JsonObject":
    """Raises Failure where it does not come."""
    for _ in range(TRIES):
        report = api.get(
            f"/v1/files/{file_id}/report", **{k: v for k, v in question.items() if v is not None}
        )
        if report["status"] == "completed":
            return report
    raise Failure(f"The report of {file_id} is not ready yet: ask again in a while.")


def show_report(report: "JsonObject") -> None:
    lengths, tokens = report["lengths"], report["tokens"]
    measures = ", ".join(f"{name} {lengths[name]:,}" for name in ("mean", "median", "p95", "max"))
    screen.facts(
        [
            ("file", report["file"]),
            ("rows", f"{report['rows']:,}" + ("" if report["complete"] else " looked at, not all of them")),
            ("size", screen.size(report["bytes"])),
            ("length", f"{measures} {lengths['unit']}"),
            ("", bars([part["rows"] for part in lengths["histogram"]]) or None),
            ("tokens", tokens and f"{tokens['total']:,}, of which {tokens['trained']:,} are learned"),
            ("examples", tokens and f"{tokens['examples']:,} of at most {tokens['max_length']:,} tokens"),
        ]
    )
    findings = report["findings"]
    screen.say("\nNothing was found to be wrong." if not findings else "")
    for finding in findings:
        about = "about " if finding["estimated"] else ""
        lines = ", ".join(f"{line:,}" for line in finding["lines"])
        more = ", …" if finding["count"] > len(finding["lines"]) else ""
        level = (f"{finding['level']:<5} ", screen.STYLES.get(finding["level"], ""))
        what = f"{finding['code']}: {about}{finding['count']:,}, in lines {lines}{more}"
        screen.say(Text.assemble(level, (what, "bold")))
        screen.say(f"      {finding['meaning']} {finding['action']}")


def bars(counts: list[int]) -> str:
    """One character a number, as high as it is large; what is not nothing is seen."""
    most = max(counts, default=0)
    return "".join(BARS[0] if not count else BARS[max(1, round(count / most * 8))] for count in counts)


def show_preview(preview: "JsonObject") -> None:
    """Row by row; without colours what is learned stands in brackets."""
    colours = screen.console().color_system is not None and not screen.console().no_color
    key = (
        Text.assemble(("learned", LEARNED), " and ", ("only read", READ))
        if colours
        else Text("[learned] and only read")
    )
    screen.say(Text.assemble(f"\nmax_length {preview['max_length']}; ", key))
    for row in preview["data"]:
        answers = [(name, row[name]) for name in ("preferred", "rejected") if name in row]
        for name, shown in answers or [("", row)]:
            _show_row(row, name, shown, colours)


def _show_row(row: "JsonObject", name: str, shown: "JsonObject", colours: bool) -> None:
    line = shown.get("line", row.get("line"))
    head = f"\nline {line}{' ' + name if name else ''}: {shown['outcome']}, {shown['tokens']:,} tokens,"
    screen.say(f"{head} {shown['trained_tokens']:,} learned, {shown['examples']:,} examples", "bold")
    if "pieces" in shown:
        screen.say(tokens(shown["pieces"], shown["learned"], colours))
    if shown["cut"]:
        screen.say(f"cut off, {shown['cut']['tokens']:,} tokens: {shown['cut']['text']}", "red")


def tokens(pieces: list[str], learned: list[int], colours: bool) -> Text:
    """The row's text with the loss mask on it. Of control characters their pictures are shown."""
    text, within = Text(), False
    for piece, mark in zip(pieces, learned, strict=True):
        if not colours and bool(mark) != within:
            text.append("[" if mark else "]")
        within = bool(mark)
        text.append(screen.plain(piece), LEARNED if mark and colours else READ if colours else "")
    if within and not colours:
        text.append("]")
    return text
