"""`python -m worker.integrations`: reports one attempt to other services, from the lines on its stdin.

A process of its own, without credentials of the database or the broker: a library that hangs, leaks or
crashes costs the report and nothing else. What became of each integration is a line of JSON on stdout.

    {"job": {…}, "integrations": [{"type": …, …}]}        the first line
    {"step": 5, "values": {"loss": 0.5}}                   as often as there is something
    {"status": "succeeded", "model": "/…/model" or null}   the last
"""

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from worker.integrations.sinks import ADVICE, SINKS, Json, Sink


def report(kind: str, sink: Sink, job: Json, lines: "queue.SimpleQueue[Json]", said: TextIO) -> None:
    """One integration, from its beginning to its end; what it raises is told, and the rest left unsaid."""
    try:
        sink.begin(job)
        while "status" not in (line := lines.get()):
            sink.log(int(line["step"]), line["values"])
        place = sink.end(line["status"], Path(line["model"]) if line["model"] else None)
        told: Json = {"type": kind, "url": place, "ended": line["status"]}
    except BaseException as error:  # libraries raise what they like, SystemExit among it
        told = {"type": kind, "error": f"{type(error).__name__}: {error}"[:500], "advice": ADVICE[kind]}
    said.write(json.dumps(told) + "\n")
    said.flush()


def main() -> None:
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print where they like
    sys.stdout = sys.stderr
    order: Json = json.loads(sys.stdin.readline())
    queues: list[queue.SimpleQueue[Any]] = []
    threads = []
    for integration in order["integrations"]:
        kind = integration["type"]
        if kind not in SINKS:
            continue
        lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
        sink = SINKS[kind](integration[kind])
        given = (kind, sink, order["job"], lines, said)
        threads.append(threading.Thread(target=report, args=given, name=kind, daemon=True))
        queues.append(lines)
    for thread in threads:
        thread.start()
    last = None
    for text in sys.stdin:
        last = json.loads(text)
        for lines in queues:
            lines.put(last)
    if last is None or "status" not in last:  # the worker is gone
        for lines in queues:
            lines.put({"status": "interrupted", "model": None})
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
    sys.stderr.flush()
    os._exit(0)
