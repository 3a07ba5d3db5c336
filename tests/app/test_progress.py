"""Metrics in ranges and thinned, and the stream of events and metrics: whole, in order, whatever breaks."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import Engine, event, select, text, update

from app import feed as feeds
from app.database import Database, WorkerDatabase
from app.feed import Feed, feeding
from app.feed_rows import Cursor
from app.lifecycle import claims, wishes
from app.lifecycle.history import note
from app.recipe import Recipe
from app.tables import Event, Job
from tests.app.conftest import Api, serving
from worker.rows import Rows
from worker.training.events import Evaluated, Step

LEASE = timedelta(minutes=5)
BEGINNING = Cursor(0, "", -1)


@pytest.fixture(scope="module")
def database(api: Api) -> Iterator[WorkerDatabase]:
    database = WorkerDatabase(api.settings)
    yield database
    database.close()


@pytest.fixture
def job_id(client: OpenAI, rows: Path) -> str:
    file = client.files.create(file=rows, purpose="fine-tune")
    return client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file.id).id


class Run:
    """A worker that reports what it is told to."""

    def __init__(self, api: Api, database: WorkerDatabase, job_id: str) -> None:
        self.database, self.job_id = database, job_id
        with database.transaction() as session:
            held = claims.claim(session, job_id, "worker", LEASE)
        assert held is not None
        self.held, self._rows = held, Rows(api.settings, held)

    def steps(self, *steps: int) -> None:
        with self.database.transaction() as session:
            said = [Step(n, n / 10, 1 / n, 0.1, 1.0, 5, 5 * n, 9.0, 1, False) for n in steps]
            assert self._rows.write(session, [self._rows.hear(event) for event in said])

    def evaluate(self, step: int) -> None:
        with self.database.transaction() as session:
            event = Evaluated(step, step / 10, 0.5, 1.6, 0.9, 7)
            assert self._rows.write(session, [self._rows.hear(event)])

    def fail(self) -> None:
        with self.database.transaction() as session:
            assert claims.fail(session, self.held, claims.JobError("bad", "It went wrong."))


@pytest.fixture
def run(api: Api, database: WorkerDatabase, job_id: str) -> Run:
    return Run(api, database, job_id)


def fill(database: WorkerDatabase, job_id: str, count: int, spike: int, every: int) -> None:
    """`count` steps on a falling curve with one outlier, evaluated at every so many."""
    with database.transaction() as session:
        session.execute(
            text(
                "INSERT INTO metrics (job_id, step, epoch, loss, valid_loss)"
                " SELECT :job, n, 1, CASE WHEN n = :spike THEN 99 ELSE 1.0 / n END,"
                " CASE WHEN n % :every = 0 THEN 0.5 END FROM generate_series(1, :count) n"
            ),
            {"job": job_id, "spike": spike, "every": every, "count": count},
        )


def steps(http: httpx2.Client, job_id: str, **asked: Any) -> list[int]:
    answer = http.get(f"/v1/fine_tuning/jobs/{job_id}/metrics", params=asked)
    assert answer.status_code == 200, answer.text
    return [row["step"] for row in answer.json()["data"]]


def test_metrics_come_in_ranges_and_pages(http: httpx2.Client, database: WorkerDatabase, job_id: str) -> None:
    fill(database, job_id, 100, spike=50, every=33)
    assert steps(http, job_id) == list(range(1, 101))
    assert steps(http, job_id, after=90) == list(range(91, 101))
    assert steps(http, job_id, after=10, before=14) == [11, 12, 13]
    assert steps(http, job_id, every=25) == [25, 33, 50, 66, 75, 99, 100]
    page = http.get(f"/v1/fine_tuning/jobs/{job_id}/metrics", params={"after": 97, "limit": 2}).json()
    assert ([row["step"] for row in page["data"]], page["has_more"]) == ([98, 99], True)
    for wrong in ({"points": 5}, {"points": 100, "every": 2}, {"peaks": False}, {"limit": 0}, {"after": "x"}):
        assert http.get(f"/v1/fine_tuning/jobs/{job_id}/metrics", params=wrong).status_code == 400


def test_a_long_curve_is_thinned_without_losing_a_peak_an_end_or_an_evaluation(
    http: httpx2.Client, database: WorkerDatabase, job_id: str
) -> None:
    fill(database, job_id, 30_000, spike=17_777, every=10_000)
    found = steps(http, job_id, points=1000)
    assert found == sorted(set(found))
    assert 900 <= len(found) <= 1005
    assert {1, 17_777, 10_000, 20_000, 30_000} <= set(found)
    assert max(b - a for a, b in pairwise(found)) <= 120, "no stretch is left out"
    assert steps(http, job_id, points=1000, after=17_000, before=17_500) == list(range(17_001, 17_500))
    assert steps(http, job_id, points=10, after=30_000) == []
    evenly = steps(http, job_id, points=1000, peaks=False)
    assert evenly == sorted(set(evenly))
    assert 1000 <= len(evenly) <= 1003
    assert {1, 10_000, 20_000, 30_000} <= set(evenly)
    assert max(b - a for a, b in pairwise(evenly)) <= 31
    assert steps(http, job_id, points=1000, peaks=False, before=500) == list(range(1, 500))
    assert steps(http, job_id, points=10, peaks=False, after=30_000) == []


def test_of_evaluations_without_end_the_extremes_are_kept(
    http: httpx2.Client, database: WorkerDatabase, job_id: str
) -> None:
    fill(database, job_id, 5_000, spike=2_500, every=1)
    assert len(steps(http, job_id, points=100)) <= 202
    assert len(steps(http, job_id, points=100, peaks=False)) == 100


def test_a_jobs_events_become_visible_in_the_order_of_their_numbers(
    api: Api, database: WorkerDatabase, job_id: str
) -> None:
    """Else a reader that has seen number 9 would never look for 8, whose transaction took longer."""
    done = threading.Event()

    def other() -> None:
        with database.transaction() as session:
            note(session, job_id, "info", "second", "")
        done.set()

    def waits() -> bool:
        with database.transaction() as session:
            return bool(
                session.scalar(
                    text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'")
                )
            )

    thread = threading.Thread(target=other)
    with database.transaction() as session:
        note(session, job_id, "info", "first", "")
        thread.start()
        while not (waits() or done.is_set()):
            done.wait(0.01)
        note(session, job_id, "info", "first", "")
    thread.join()
    with database.transaction() as session:
        query = select(Event.code).where(Event.job_id == job_id).order_by(Event.seq)
        assert list(session.scalars(query)) == ["created", "first", "first", "second"]


class Listener:
    """Reads a stream over HTTP, from where it was cut off the last time."""

    def __init__(self, job_id: str) -> None:
        self.path = f"/v1/fine_tuning/jobs/{job_id}/events/stream"
        self.last_id: str | None = None
        self.got: list[dict[str, Any]] = []
        self.status = 0

    def listen(self, http: httpx2.Client, most: int) -> None:
        headers = {} if self.last_id is None else {"last-event-id": self.last_id}
        with http.stream("GET", self.path, headers=headers) as answer:
            self.status = answer.status_code
            message_id = ""
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    message_id = line[4:]
                if line.startswith("data: "):
                    self.got.append(json.loads(line[6:]))
                    self.last_id = message_id
                    most -= 1
                if not most:
                    return

    def seen(self, kind: str) -> list[dict[str, Any]]:
        return [body for body in self.got if body["object"] == kind]


def test_nothing_is_lost_or_doubled_across_broken_connections_and_processes(
    api: Api, http: httpx2.Client, run: Run, client: OpenAI
) -> None:
    listener = Listener(run.job_id)
    run.steps(*range(1, 11))
    listener.listen(http, 3)
    with serving(api.settings) as other, api.http(url=other) as elsewhere:
        run.evaluate(10)
        for n in range(11, 31):
            run.steps(n)
            listener.listen(http if n % 3 else elsewhere, 1)
    # A crash: steps are trained again and give the same numbers.
    run.steps(28, 29, 30, 31)
    wishes_before_the_end(run)
    with serving(api.settings) as successor, api.http(url=successor) as restarted:
        listener.listen(restarted, 1000)
    assert [body["step"] for body in listener.seen("fine_tuning.job.metric")] == list(range(1, 32))
    listed = [event.id for event in client.fine_tuning.jobs.list_events(run.job_id, limit=100)]
    assert [body["id"] for body in listener.seen("fine_tuning.job.event")] == listed[::-1]
    last = listener.got[-1]
    assert (last["object"], last["status"], last["id"]) == ("fine_tuning.job", "failed", run.job_id)
    assert len(listener.seen("fine_tuning.job")) == 1
    listener.listen(http, 1)
    assert listener.status == 204, "a browser that asks again is told to stop"


def wishes_before_the_end(run: Run) -> None:
    with run.database.transaction() as session:
        wishes.pause(session, run.job_id, "finetuned")
    run.fail()


def test_a_stream_begins_where_it_is_told_to(http: httpx2.Client, run: Run) -> None:
    run.steps(*range(1, 21))
    run.fail()
    listener = Listener(run.job_id)
    listener.path += "?after=:18"
    listener.listen(http, 1000)
    assert [body["step"] for body in listener.seen("fine_tuning.job.metric")] == [19, 20]
    assert len(listener.seen("fine_tuning.job.event")) >= 3


@pytest.mark.parametrize("after", ["nonsense", "ftevent-0:1", ":x", ":-1", ":1:2", "%00:1", ":" + "9" * 30])
def test_what_is_no_id_of_the_stream_is_refused(http: httpx2.Client, job_id: str, after: str) -> None:
    answer = http.get(f"/v1/fine_tuning/jobs/{job_id}/events/stream?after={after}")
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_nobody_else_may_listen(api: Api, job_id: str) -> None:
    path = f"/v1/fine_tuning/jobs/{job_id}/events/stream"
    with api.http(api.stranger_key) as stranger, httpx2.Client(base_url=api.url) as nobody:
        assert stranger.get(path).status_code == 404
        assert nobody.get(path).status_code == 401


@pytest.fixture
async def feed(api: Api) -> AsyncIterator[Feed]:
    database = Database(api.settings)
    async with feeding(database) as feed:
        yield feed
    await database.close()


async def collect(
    feed: Feed,
    job_id: str,
    pause: Callable[[], Any] = lambda: asyncio.sleep(0),
    into: list[str] | None = None,
) -> list[str]:
    got = [] if into is None else into
    async for message in feed.follow(job_id, BEGINNING, "me"):
        got.append(message)
        await pause()
    return got


async def test_fifty_listeners_cost_the_database_as_much_as_one(feed: Feed, run: Run) -> None:
    statements, looks, look = 0, 0, feed._look

    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    async def counted() -> None:
        nonlocal looks
        looks += 1
        await look()

    engine: Engine = feed.database.engine.sync_engine
    lists: list[list[str]] = [[] for _ in range(50)]
    listeners = [asyncio.create_task(collect(feed, run.job_id, into=into)) for into in lists]
    while not all(lists):  # noqa: ASYNC110  # until they have caught up with what there was
        await asyncio.sleep(0.01)
    feed._look = counted  # type: ignore[method-assign]
    event.listen(engine, "before_cursor_execute", count)
    for n in range(1, 6):
        await asyncio.to_thread(run.steps, n)
        await asyncio.sleep(feeds.LOOK_EVERY)
    event.remove(engine, "before_cursor_execute", count)
    await asyncio.to_thread(run.fail)
    got = await asyncio.gather(*listeners)
    assert all(each == got[0] for each in got)
    assert sum("job.metric" in message for message in got[0]) == 5
    assert 0 < statements <= 4 * (looks + 1), "of a look, not of a listener"
    assert not feed._channels, "who has left costs nothing"


async def test_who_is_slow_gets_everything_from_the_database(
    feed: Feed, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "TAIL", 5)
    monkeypatch.setattr(feeds, "PAGE", 7)
    slow = asyncio.create_task(collect(feed, run.job_id, lambda: asyncio.sleep(0.02)))
    fast = asyncio.create_task(collect(feed, run.job_id))
    for n in range(0, 60, 10):
        await asyncio.to_thread(run.steps, *range(n + 1, n + 11))
        assert all(len(channel.tail) <= 5 for channel in feed._channels.values())
    await asyncio.to_thread(run.fail)
    assert await slow == await fast
    bodies = [json.loads(message.partition("data: ")[2]) for message in await fast]
    assert [body["step"] for body in bodies if body["object"].endswith("metric")] == list(range(1, 61))


async def test_a_listener_that_leaves_is_forgotten(feed: Feed, run: Run) -> None:
    async with aclosing(feed.follow(run.job_id, BEGINNING, "me")) as stream:
        async for _ in stream:
            break
        assert feed._channels
    assert not feed._channels


def test_a_job_is_diagnosed_from_its_rows(
    client: OpenAI, api: Api, database: WorkerDatabase, job_id: str
) -> None:
    path = f"/fine_tuning/jobs/{job_id}/diagnosis"
    assert client.get(path, cast_to=object)["findings"] == []  # type: ignore[index]
    run = Run(api, database, job_id)
    recipe = Recipe.from_request({"lr_scheduler_warmup_steps": 1000, "learning_rate": 1e-3, "num_epochs": 1})
    batch = {"train_batch_size": 8, "gradient_accumulation_steps": 1, "total_train_batch_size": 8}
    resolved = recipe.model_dump(mode="json") | batch | {"max_length": 64}
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(resolved=resolved, total_steps=100))
    run.steps(*range(1, 31))
    said: Any = client.get(path, cast_to=object)
    assert [finding["code"] for finding in said["findings"]] == ["warmup_longer_than_run"]
    finding = said["findings"][0]
    assert "1,000 of 100 steps" in finding["says"]
    assert finding["evidence"] == {"metric": "learning_rate", "points": [{"step": 100, "value": 1e-3}]}
    assert finding["remedies"][0]["hyperparameters"] == {"lr_scheduler_warmup_steps": "auto"}
