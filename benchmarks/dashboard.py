"""`python -m benchmarks.dashboard`: a list of 1,000 jobs and a job of a million steps in a real browser.

A real Postgres, Valkey and API; the rows are made in the database, since training so much would take weeks.
Measured in the system's Chromium, without a cache first and then with one:

first_row    from opening the address to the first row, or the first curve, that can be seen
first_chart  to the chart of that curve with its axes, which answers to the pointer
update       from the commit of a new number in the database to the page that shows it; the service looks
             twice a second, the list asks every three seconds, charts are drawn once a second at most
longest_task the longest time for which the page did not answer its reader while it was live, in milliseconds

The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Browser, Page, sync_playwright
from sqlalchemy import text

from app import database
from app.auth import ensure_first_key
from app.database import WorkerDatabase
from app.embedded import sockets
from app.embedded.postgres import Postgres
from app.embedded.valkey import Valkey
from app.recipe import Recipe
from app.settings import Settings

LONG = "ftjob-00000000000000000000long"
UPDATES = 8
ROW = ".jobs tbody tr .spark path[d]"
CURVE = "document.querySelector('[data-chart=loss] .plot :is(.sketch path, .js-line)')"
CHART = "document.querySelector('[data-chart=loss] .plot')?.data?.[0]?.y?.length > 100"
# What keeps the page from answering for longer than 50 ms, as the browser itself counts it.
WATCH = """() => {
  window.longest = 0;
  const note = (list) => list.getEntries().forEach((one) => { longest = Math.max(longest, one.duration); });
  new PerformanceObserver(note).observe({type: 'longtask', buffered: true});
}"""
FILE = """
INSERT INTO files (id, owner, key, bytes, sha256, filename, purpose, format, status, rows)
VALUES ('file-b', :owner, 'files/b', 1, '', 'b.jsonl', 'fine-tune', 'jsonl', 'processed', 1)
"""
JOBS = """
INSERT INTO jobs (id, owner, request_sha256, model, source, training_file, seed, method, hyperparameters,
                  recipe, resolved, max_attempts, attempt, epoch, step, total_steps, status, suffix, worker,
                  lease_expires_at, started_at, finished_at, error_code, error_message, fine_tuned_model)
SELECT id, :owner, '', 'tiny-gpt2', 'builtin:tiny-gpt2', 'file-b', 42, '{"type": "supervised"}', '{}',
       :recipe, :recipe, 3, 1, 1, CASE status WHEN 'queued' THEN 0 ELSE steps END, total, status, 'run-' || n,
       CASE status WHEN 'running' THEN 'worker-' || n END,
       CASE status WHEN 'running' THEN now() + interval '1 day' END,
       CASE WHEN status <> 'queued' THEN now() - interval '1 hour' END,
       CASE WHEN status IN ('succeeded', 'failed', 'cancelled') THEN now() END,
       CASE status WHEN 'failed' THEN 'out_of_memory' END,
       CASE status WHEN 'failed' THEN 'The device has too little memory.' END,
       CASE status WHEN 'succeeded' THEN 'ft:tiny-gpt2:b:' || n END
FROM (SELECT n, CASE n WHEN :jobs THEN :long ELSE 'ftjob-' || lpad(n::text, 24, '0') END AS id,
             CASE n WHEN :jobs THEN :steps ELSE 200 END AS steps,
             CASE n WHEN :jobs THEN 2 * :steps ELSE 400 END AS total,
             CASE WHEN n = :jobs THEN 'running'
                  ELSE (ARRAY['succeeded', 'failed', 'cancelled', 'queued', 'running'])[1 + n % 5]
             END AS status
      FROM generate_series(1, :jobs) n) made
"""
METRICS = """
INSERT INTO metrics (job_id, step, epoch, epoch_progress, loss, learning_rate, grad_norm, tokens,
                     trained_tokens, tokens_per_second, memory_bytes, skipped, valid_loss)
SELECT :job, n, 1, n / 1000.0, 8 / (1 + n / 2000.0) + random(), 1e-4, 1 + random(), 4096, n * 4096::bigint,
       9000 + 500 * random(), 600000000, false, CASE WHEN n % :every = 0 THEN 8 / (1 + n / 2000.0) END
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) n
"""


@contextmanager
def service(home: Path) -> Iterator[tuple[str, str, WorkerDatabase]]:
    """Address, key and database of an API with nothing in it."""
    record = home / "sockets"
    folder = sockets.create(record)
    postgres, valkey = Postgres(home / "postgres", folder), Valkey(home / "valkey", folder)
    with socket.socket() as listener:
        try:
            urls = {"database_url": str(postgres.start()), "redis_url": str(valkey.start())}
            settings = Settings(home=home, **urls)  # type: ignore[arg-type]
            database.migrate(settings)
            key = ensure_first_key(settings).read_text().strip()
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            told = {
                "FINETUNED_HOME": str(home),
                "DATABASE_URL": urls["database_url"],
                "REDIS_URL": urls["redis_url"],
            }
            api = subprocess.Popen(
                [sys.executable, "-m", "app.embedded.api", str(listener.fileno())],
                env={**os.environ, **told},
                pass_fds=[listener.fileno()],
                stderr=subprocess.DEVNULL,
            )
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            httpx2.get(f"{url}/healthz", timeout=60).raise_for_status()
            rows = WorkerDatabase(settings)
            yield url, key, rows
            rows.close()
        finally:
            api.terminate()
            api.wait(20)
            valkey.stop()
            postgres.stop()
            sockets.remove(record)


def fill(rows: WorkerDatabase, owner: str, jobs: int, steps: int) -> None:
    """`jobs` jobs of 200 steps, the newest of them of `steps` steps, running."""
    recipe = Recipe().model_dump(mode="json") | {"learning_rate": 1e-4, "num_epochs": 1.0}
    named = {"owner": owner, "jobs": jobs, "steps": steps, "long": LONG, "recipe": json.dumps(recipe)}
    with rows.transaction() as session:
        session.execute(text("SET LOCAL statement_timeout = 0"))
        session.execute(text(FILE), {"owner": owner})
        session.execute(text(JOBS), named)
        session.execute(
            text(METRICS), {"job": LONG, "first": 1, "last": steps, "every": max(1, steps // 400)}
        )
        session.execute(
            text(
                "INSERT INTO metrics (job_id, step, epoch, loss)"
                " SELECT id, n, 1, 8 / (1 + n / 20.0) + random() FROM jobs, generate_series(1, 200) n"
                " WHERE id <> :long AND status <> 'queued'"
            ),
            {"long": LONG},
        )
    with rows.transaction() as session:
        session.execute(text("ANALYZE"))


def opened(browser: Browser, url: str, key: str, fragment: str, ready: str) -> tuple[Page, list[float]]:
    """A page, and the milliseconds until `ready` came true, without anything cached and then with."""
    # Waiting by a function is `eval` in the page, which its policy refuses.
    page = browser.new_context(viewport={"width": 1280, "height": 860}, bypass_csp=True).new_page()
    page.goto(f"{url}/docs")
    page.evaluate("key => sessionStorage.setItem('key', key)", key)
    times = []
    for _ in range(2):
        page.goto("about:blank")
        page.goto(f"{url}/{fragment}", wait_until="commit")
        times.append(ready_after(page, ready))
    return page, times


def ready_after(page: Page, ready: str) -> float:
    """Milliseconds from the opening of the page until `ready` came true, by its own clock: what it does
    next may keep it from telling."""
    found = page.wait_for_function(f"({ready}) && performance.now()", polling="raf", timeout=60_000)
    milliseconds: float = found.json_value()
    return milliseconds


def seen_after(page: Page, change: Any, shown: str) -> float:
    """Milliseconds from a committed change to `shown`."""
    change()
    began = time.monotonic()
    page.wait_for_function(shown, polling="raf", timeout=30_000)
    return (time.monotonic() - began) * 1000


def measure_list(page: Page, rows: WorkerDatabase, steps: int) -> dict[str, float]:
    page.evaluate(WATCH)
    times = []
    for n in range(1, UPDATES + 1):
        step = steps + 1000 * n

        def advance(step: int = step) -> None:
            with rows.transaction() as session:
                session.execute(text("UPDATE jobs SET step = :s WHERE id = :j"), {"s": step, "j": LONG})

        shown = f"document.querySelector('.jobs .far').textContent.startsWith('{step:,} /')"
        times.append(seen_after(page, advance, shown))
    return {"update": round(statistics.median(times)), "longest_task": round(page.evaluate("longest"))}


def measure_job(page: Page, rows: WorkerDatabase, steps: int) -> dict[str, float]:
    page.evaluate(WATCH)
    times = []
    for n in range(UPDATES):
        first = steps + 1 + 20 * n

        def train(first: int = first) -> None:
            with rows.transaction() as session:
                named = {"job": LONG, "first": first, "last": first + 19, "every": 10**9}
                session.execute(text(METRICS), named)

        shown = f"document.querySelector('[data-chart=loss] .plot').data[0].x.at(-1) >= {first + 19}"
        times.append(seen_after(page, train, shown))
    return {"update": round(statistics.median(times)), "longest_task": round(page.evaluate("longest"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=1_000_000)
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("No Chromium on this machine.")
    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as (url, key, rows):
        fill(rows, Settings().organization, given.jobs, given.steps)
        with sync_playwright() as playwright:
            options = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
            browser = playwright.chromium.launch(executable_path=chromium, args=options)
            results: dict[str, Any] = {"jobs": given.jobs, "steps": given.steps}
            list_page, [cold, warm] = opened(browser, url, key, "#/jobs", f"document.querySelector('{ROW}')")
            results["list"] = {"first_row_cold": round(cold), "first_row": round(warm)}
            results["list"] |= measure_list(list_page, rows, given.steps)
            list_page.close()
            job_page, [cold, warm] = opened(browser, url, key, f"#/jobs/{LONG}", CURVE)
            results["job"] = {"first_curve_cold": round(cold), "first_curve": round(warm)}
            results["job"]["first_chart"] = round(ready_after(job_page, CHART))
            results["job"] |= measure_job(job_page, rows, given.steps)
            browser.close()
    for name in ("list", "job"):
        print(name, ", ".join(f"{key} {value} ms" for key, value in results[name].items()))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
