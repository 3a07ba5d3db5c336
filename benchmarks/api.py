"""`python -m benchmarks.api`: thousands of jobs, hundreds of clients and a million rows on one machine.

Three API processes, four workers with the real trainer. Jobs are sent by many clients at once while the first
of them are trained, polled and listened to; then every id that was ever answered is looked for. At last the
poll of one job is measured beside a bare FastAPI and psycopg route in turns, everything else silent.

The last line is one JSON document: `lost_jobs` is how many accepted ids are not in exactly the state they
should be in, `doubled_jobs` how many rows there are beside them, `vs_bare_route` the throughput of polling as
a share of the bare route's. `--short` is for working on this program: minutes become seconds.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.polling import Polled, get, poll
from benchmarks.service import Service
from benchmarks.storm import JOBS, Crowd, Size

APIS, WORKERS = 3, 4
CLIENTS = 32  # of the comparison
LEAST_SHARE = 0.6  # of the bare route's throughput
FLAT = 1.15  # memory of the API processes in the last quarter of the storm, over that in the second
WHOLE = Size(10_000, 200, 200, 50, 1_000_000, 6.0, 5, 20)
SHORT = Size(300, 8, 20, 5, 20_000, 2.0, 2, 4)


def audit(service: Service, crowd: Crowd) -> dict[str, Any]:
    """Every accepted id, looked for one by one in what the database says, with all that belongs to it."""
    # Counted a table at a time: of a million rows of one job the planner expects as many of every other, and
    # looked through all of them for each of ten thousand jobs.
    rows = service.rows(
        "SELECT j.id, j.status, j.metadata->>'number', coalesce(m.n, 0), coalesce(a.n, 0), coalesce(s.n, 0),"
        " (j.recipe->>'max_steps')::int, j.attempt FROM jobs j"
        " LEFT JOIN (SELECT job_id, count(*) n FROM models GROUP BY 1) m ON m.job_id = j.id"
        " LEFT JOIN (SELECT job_id, count(*) n FROM attempts WHERE ended_at IS NULL GROUP BY 1) a"
        " ON a.job_id = j.id"
        " LEFT JOIN (SELECT job_id, count(*) n FROM metrics GROUP BY 1) s ON s.job_id = j.id"
        " WHERE j.id <> %s",
        crowd.ballast,
    )
    found = {row[0]: row for row in rows}
    wrong = []
    for job_id in crowd.accepted:
        row = found.get(job_id)
        if row is None:
            wrong.append((job_id, "gone"))
            continue
        _, status, _, models, open_, steps, wanted, attempts = row
        right = {
            "queued": (models, open_, attempts) == (0, 0, 0),
            "running": (models, open_) == (0, 1),
            "succeeded": (models, open_, steps) == (1, 0, wanted),
        }
        if not right.get(status, False):
            wrong.append((job_id, str(row)))
    numbers = Counter(row[2] for row in rows)
    return {
        "lost_jobs": len(wrong),
        "wrong": wrong[:5],
        "doubled_jobs": sum(number - 1 for number in numbers.values())
        + len(found.keys() - crowd.accepted.keys()),
        "states": dict(Counter(row[1] for row in rows)),
        "metric_rows": service.rows("SELECT count(*) FROM metrics")[0][0],
    }


def compare(service: Service, crowd: Crowd, size: Size) -> dict[str, Any]:
    """Polling of one ended job, ours and the bare route's in turns: the same clients, the same bytes."""
    path = f"{JOBS}/{crowd.ballast}"
    bare = service.serve("benchmarks.bare_route", APIS)
    ports = {"bare": bare, "ours": service.port}
    turns: dict[str, list[Polled]] = {name: [] for name in ports}
    for turn in range(size.turns + 1):
        for name, port in ports.items():
            found = uvloop.run(poll(port, lambda: get(path, crowd.keys[0]), CLIENTS, size.turn))
            if turn:  # the first one warms up
                turns[name].append(found)
    bodies = {name: found[-1].body for name, found in turns.items()}
    if bodies["bare"] != bodies["ours"]:
        raise RuntimeError(f"different answers: {bodies}")
    if any(set(found.statuses) != {200} for runs in turns.values() for found in runs):
        raise RuntimeError(f"not all were answered: {[f.statuses for r in turns.values() for f in r]}")
    through = {name: statistics.median(found.throughput for found in runs) for name, runs in turns.items()}
    late = {name: statistics.median(found.percentile(0.99) for found in runs) for name, runs in turns.items()}
    pairs = zip(turns["ours"], turns["bare"], strict=True)
    return {
        "polls_per_second": {name: round(value) for name, value in through.items()},
        "p99_seconds": {name: round(value, 4) for name, value in late.items()},
        "vs_bare_route": round(statistics.median(a.throughput / b.throughput for a, b in pairs), 3),
    }


def measure(folder: Path, size: Size) -> dict[str, Any]:
    began = time.monotonic()
    service = Service(folder, APIS, WORKERS, FINETUNED_MIN_FREE_BYTES="0")
    try:
        crowd = Crowd(service, size)
        crowd.prepare()
        started = time.monotonic()
        uvloop.run(crowd.run())
        sending = crowd.sent_after - started
        service.stop("worker")
        found = audit(service, crowd)
        quarter = max(1, len(crowd.memory) // 4)
        growth = statistics.median(crowd.memory[-quarter:]) / statistics.median(
            crowd.memory[quarter : 2 * quarter]
        )
        polled = crowd.polled
        return {
            "accepted_jobs": len(crowd.accepted),
            "jobs_per_second": round(len(crowd.accepted) / sending, 1),
            "trained_jobs": found["states"].get("succeeded", 0),
            **found,
            "refusals": dict(crowd.refused),
            "storm_polls": len(polled.seconds),
            "storm_statuses": {str(status): number for status, number in polled.statuses.items()},
            "storm_p99_seconds": round(polled.percentile(0.99), 3),
            "events_heard": crowd.heard,
            "events_heard_twice": crowd.heard_twice,
            "api_memory_growth": round(growth, 3),
            **compare(service, crowd, size),
            "seconds": round(time.monotonic() - began),
        }
    finally:
        service.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true")
    size = SHORT if parser.parse_args().short else WHOLE
    with tempfile.TemporaryDirectory() as folder:
        document = measure(Path(folder), size)
    enough = document["accepted_jobs"] >= size.jobs and document["trained_jobs"] >= size.trained
    wrong = sum(document[name] for name in ("lost_jobs", "doubled_jobs", "events_heard_twice"))
    flat = document["api_memory_growth"] < FLAT
    document["held"] = enough and not wrong and flat and document["vs_bare_route"] >= LEAST_SHARE
    print(json.dumps(document))
    sys.exit(not document["held"])


if __name__ == "__main__":
    main()
