"""Whose turn it is: the order of service, what workers can have, and who gives way to whom."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import select, text, update

from app import footprint, forecast
from app.database import WorkerDatabase
from app.lifecycle import announcements, claims, offers, turns, wishes, yielding
from app.lifecycle.claims import Claim
from app.lifecycle.offers import Offer
from app.settings import Settings
from app.tables import Checkpoint, Event, File, Job, Worker, now
from tests.app.conftest import Api
from tests.app.test_keys import make

LEASE = timedelta(minutes=1)
FRESH = timedelta(seconds=9)
AGAIN = timedelta(seconds=30)
NOW = timedelta(0)
GB = 10**9


class Queue:
    """Jobs and workers as rows, and what the programs do with them."""

    def __init__(self, database: WorkerDatabase) -> None:
        self.database = database
        with database.transaction() as session:
            facts = {"bytes": 1, "sha256": "", "filename": "f", "purpose": "fine-tune", "format": "jsonl"}
            session.add(File(id="file-1", owner="a", key="k", status="processed", rows=1, **facts))

    def add(self, job_id: str, owner: str = "a", priority: int = 0, **more: Any) -> None:
        values = {
            "id": job_id,
            "owner": owner,
            "request_sha256": job_id,
            "model": "tiny-gpt2",
            "source": "builtin:tiny-gpt2",
            "training_file": "file-1",
            "seed": 1,
            "method": {},
            "hyperparameters": {},
            "recipe": {"num_epochs": 1},
            "max_attempts": 3,
            "idempotency_key": None,
            "priority": priority,
            **more,
        }
        with self.database.transaction() as session:
            wishes.create(session, values)

    def work(self, worker: str, **more: Any) -> Offer:
        """A worker that has just been heard of; again: what it runs by now."""
        with self.database.transaction() as session:
            known = {"host": "h", "slots": 1, "busy": 0, "version": "1", **more}
            session.merge(Worker(id=worker, **known))
            session.flush()
            return next(offer for offer in offers.living(session, FRESH) if offer.worker == worker)

    def knock(self, offer: Offer, job_id: str = "none") -> str | None:
        """What a worker claims whom a message reached."""
        held = self.claim(offer, job_id)
        return None if held is None else held.job_id

    def claim(self, offer: Offer, job_id: str = "none") -> Claim | None:
        with self.database.transaction() as session:
            return turns.answer_knock(session, job_id, offer, LEASE, FRESH)

    def end(self, job_id: str) -> None:
        with self.database.transaction() as session:
            job = session.get_one(Job, job_id)
            held = Claim(job_id, job.epoch, job.attempt, job.worker or "")
            assert claims.fail(session, held, claims.JobError("x", "x"))

    def due(self) -> list[str]:
        with self.database.transaction() as session:
            return list(announcements.due(session, AGAIN, FRESH))

    def make_room(self, least_run: timedelta = NOW) -> list[str]:
        with self.database.transaction() as session:
            yielding.withdraw(session)
            return list(yielding.make_room(session, least_run, AGAIN, FRESH))

    def job(self, job_id: str) -> Job:
        with self.database.transaction() as session:
            return session.get_one(Job, job_id)

    def codes(self, job_id: str) -> list[str]:
        with self.database.transaction() as session:
            query = select(Event.code).where(Event.job_id == job_id).order_by(Event.seq)
            return list(session.scalars(query))

    def change(self, job_id: str, **values: Any) -> None:
        with self.database.transaction() as session:
            session.execute(update(Job).where(Job.id == job_id).values(**values))

    def positions(self) -> list[str]:
        with self.database.transaction() as session:
            places = forecast.line(session, FRESH)
        return sorted(places, key=lambda job_id: places[job_id].position)


@pytest.fixture
def queue(database_url: str) -> Iterator[Queue]:
    database = WorkerDatabase(Settings(database_url=database_url))
    yield Queue(database)
    database.close()


def test_the_urgent_come_first_whichever_job_the_message_names(queue: Queue) -> None:
    for number, priority in enumerate((0, -1, 1, 0)):
        queue.add(f"job-{number}", priority=priority)
    assert queue.positions() == ["job-2", "job-0", "job-3", "job-1"]
    claimed = [queue.knock(Offer("w"), "job-1") for _ in range(5)]
    assert claimed == ["job-2", "job-0", "job-3", "job-1", None]


def test_one_owners_many_jobs_keep_nobody_elses_waiting(queue: Queue) -> None:
    for number in range(30):
        queue.add(f"many-{number}", owner="many")
    assert queue.knock(Offer("w1")) == "many-0"
    queue.add("one", owner="one")
    assert queue.positions()[0] == "one"
    assert queue.knock(Offer("w2")) == "one", "the owner with fewer running jobs"
    queue.end("many-0")
    queue.end("one")
    queue.add("two", owner="one")
    with queue.database.transaction() as session:
        session.execute(
            text("UPDATE attempts SET started_at = now() - interval '1 hour' WHERE job_id = 'one'")
        )
    assert queue.knock(Offer("w1")) == "many-1", "the owner who has had workers for the least time"
    assert queue.knock(Offer("w1")) == "two"
    with queue.database.transaction() as session:
        session.execute(
            text(
                "UPDATE attempts SET started_at = now() - interval '3 days',"
                " ended_at = now() - interval '2 days' WHERE job_id = 'one'"
            )
        )
    queue.end("two")
    queue.end("many-1")
    queue.add("three", owner="one")
    assert queue.positions()[0] == "three", "what was long ago counts no more"


def test_owners_take_turns_in_the_queue_that_is_shown(queue: Queue) -> None:
    for number in range(3):
        queue.add(f"a-{number}", owner="a")
    for number in range(2):
        queue.add(f"b-{number}", owner="b")
    assert queue.positions() == ["a-0", "b-0", "a-1", "b-1", "a-2"]
    assert queue.knock(Offer("w")) == "a-0"
    assert queue.positions() == ["b-0", "b-1", "a-1", "a-2"], "who runs one comes later"


def test_workers_that_knock_at_once_get_different_jobs_and_the_best(queue: Queue) -> None:
    for number in range(24):
        queue.add(f"job-{number}", owner=f"o{number % 3}", priority=1 if number >= 16 else 0)
    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(lambda n: queue.knock(Offer(f"w{n}"), "job-0"), range(8)))
    assert sorted(map(str, claimed)) == sorted(f"job-{number}" for number in range(16, 24))


def test_a_knock_that_another_job_used_up_is_made_again(queue: Queue) -> None:
    queue.work("w", slots=2)
    queue.add("early")
    with queue.database.transaction() as session:
        announcements.mark_dispatched(session, "early")
    assert queue.due() == []
    queue.add("urgent", priority=1)
    assert queue.knock(Offer("w"), "early") == "urgent"
    assert queue.due() == ["early"]


def test_a_job_goes_to_a_worker_with_its_labels(queue: Queue) -> None:
    small = queue.work("small", labels=["gpu", "a10"], memory_bytes=24 * GB)
    queue.add("large", labels=["gpu", "h100"])
    queue.add("roomy", least_memory_bytes=40 * GB, memory_bytes=40 * GB)
    queue.add("any", priority=-1)
    assert queue.due() == ["any"], "what no free worker suits takes no place among those announced"
    assert queue.knock(small, "large") == "any"
    large = queue.work("large", labels=["eu", "gpu", "h100"], memory_bytes=80 * GB)
    assert queue.due() == ["large", "roomy"]
    assert queue.knock(large, "roomy") == "large"


def test_a_knock_at_the_wrong_door_is_made_again(queue: Queue) -> None:
    cpu = queue.work("cpu", labels=["cpu"])
    queue.work("gpu", labels=["gpu"])
    queue.add("job", labels=["gpu"])
    with queue.database.transaction() as session:
        announcements.mark_dispatched(session, "job")
    assert queue.due() == []
    assert queue.knock(cpu, "job") is None
    assert queue.due() == ["job"]


def test_a_job_that_nobody_suits_says_so_once(queue: Queue) -> None:
    queue.work("w", labels=["cpu", "host:secret"], memory_bytes=8 * GB)
    queue.add("job", labels=["h100"], least_memory_bytes=80 * GB)
    queue.add("other")
    with queue.database.transaction() as session:
        assert announcements.tell_unserved(session, FRESH) == 0, "workers may be starting"
    queue.change("job", not_before=now - timedelta(minutes=1))
    queue.change("other", not_before=now - timedelta(minutes=1))
    for _ in range(3):
        with queue.database.transaction() as session:
            announcements.tell_unserved(session, FRESH)
    assert queue.codes("job") == ["created", "no_worker"]
    assert queue.codes("other") == ["created"]
    with queue.database.transaction() as session:
        said = session.scalars(select(Event.message).where(Event.code == "no_worker")).one()
    assert said == (
        "Waiting for a worker with the labels h100 and 80,000,000,000 bytes of memory."
        " Workers that are there have: cpu."
    )
    assert queue.job("job").status == "queued"


def test_jobs_share_a_card_while_their_memory_fits(queue: Queue) -> None:
    card = {"slots": 4, "budget_bytes": 10 * GB, "memory_bytes": 10 * GB}
    offer = queue.work("w", **card)
    for name, size in (("a", 4), ("b", 5), ("c", 3), ("d", 1)):
        queue.add(name, memory_bytes=size * GB)
    assert [queue.knock(offer) for _ in range(3)] == ["a", "b", None]
    assert queue.work("w", **card).used == 9 * GB
    assert queue.job("d").status == "queued", "it would fit, and the larger one before it would starve"
    queue.end("a")
    assert [queue.knock(offer) for _ in range(3)] == ["c", "d", None]


def test_what_is_too_large_or_unknown_runs_alone(queue: Queue) -> None:
    small = queue.work("small", slots=4, budget_bytes=10 * GB)
    queue.add("huge", memory_bytes=30 * GB)
    queue.add("tiny", memory_bytes=GB)
    assert [queue.knock(small) for _ in range(2)] == ["huge", None]
    queue.end("huge")
    queue.change("tiny", priority=1)
    queue.add("unknown")
    assert [queue.knock(small) for _ in range(2)] == ["tiny", None]
    queue.end("tiny")
    assert queue.knock(small) == "unknown"


def test_what_is_too_large_here_goes_where_it_fits(queue: Queue) -> None:
    small = queue.work("small", slots=4, budget_bytes=10 * GB)
    large = queue.work("large", slots=4, budget_bytes=40 * GB)
    queue.add("huge", memory_bytes=30 * GB)
    queue.add("tiny", memory_bytes=GB)
    assert queue.knock(small) == "tiny"
    assert queue.knock(large) == "huge"


def busy(queue: Queue, *jobs: tuple[str, int]) -> None:
    """A worker for each of the jobs, which it runs."""
    for job_id, priority in jobs:
        queue.add(job_id, priority=priority)
        assert queue.knock(queue.work(f"w-{job_id}"), job_id) == job_id
        queue.work(f"w-{job_id}")


def test_the_least_urgent_gives_way_once_for_each_that_waits(queue: Queue) -> None:
    busy(queue, ("a", 0), ("b", -1), ("c", 0))
    queue.add("normal")
    assert queue.make_room() == [], "only `high` makes others give way"
    queue.add("high-1", priority=1)
    assert queue.make_room(timedelta(minutes=1)) == [], "they have only just begun"
    assert queue.make_room() == ["b"]
    assert queue.make_room() == [], "one for each that waits"
    queue.add("high-2", priority=1)
    assert queue.make_room() == ["c"], "of equals the one that has run for the shortest time"
    assert queue.job("a").yield_to is None


def test_of_equals_the_one_that_saved_last_gives_way(queue: Queue) -> None:
    busy(queue, ("a", 0), ("b", 0))
    with queue.database.transaction() as session:
        facts = {"step": 1, "epoch": 1, "key": "k", "manifest_sha256": "", "bytes": 1, "metrics": {}}
        session.add(Checkpoint(id="c", job_id="a", name="a:1", **facts))
    queue.add("high", priority=1)
    assert queue.make_room() == ["a"]


def test_nobody_gives_way_where_a_slot_is_free_or_would_not_help(queue: Queue) -> None:
    busy(queue, ("a", 0))
    queue.add("high-1", priority=1, labels=["h100"])
    assert queue.make_room() == [], "the place is on a worker that does not suit"
    queue.change("high-1", labels=[])
    queue.work("free")
    assert queue.make_room() == []
    queue.add("high-2", priority=1)
    assert queue.make_room() == ["a"], "one free slot is room for one"


def test_the_urgent_do_not_give_way_to_each_other(queue: Queue) -> None:
    busy(queue, ("high-1", 1))
    queue.add("high-2", priority=1)
    assert queue.make_room() == []


def test_memory_is_freed_by_one_that_takes_enough(queue: Queue) -> None:
    card = {"slots": 2, "budget_bytes": 10 * GB}
    offer = queue.work("w", **card)
    queue.add("small", memory_bytes=2 * GB)
    queue.add("large", memory_bytes=8 * GB)
    assert [queue.knock(offer) for _ in range(2)] == ["small", "large"]
    queue.add("high", priority=1, memory_bytes=6 * GB)
    assert queue.make_room() == ["large"]


def give_back(queue: Queue, job_id: str) -> str | None:
    job = queue.job(job_id)
    held = Claim(job_id, job.epoch, job.attempt, job.worker or "")
    with queue.database.transaction() as session:
        return claims.release(session, held, claims.PREEMPTED)


def test_who_gives_way_comes_back_by_itself_and_loses_no_attempt(queue: Queue) -> None:
    busy(queue, ("a", 0))
    queue.add("high", priority=1)
    assert queue.make_room() == ["a"]
    assert give_back(queue, "a") == "queued"
    job = queue.job("a")
    assert (job.attempt, job.yield_to, job.dispatched_at) == (0, None, None)
    assert queue.codes("a") == ["created", "claimed", "preempt_requested", "preempted"]
    assert queue.knock(queue.work("w-a"), "a") == "high", "the place is the urgent one's"
    queue.end("high")
    assert queue.knock(queue.work("w-a")) == "a"


@contextmanager
def held_for(queue: Queue, job_id: str, seconds: float) -> Iterator[None]:
    """Somebody holds the job's row, as the dispatcher does that announces it or makes room for it."""
    with queue.database.transaction() as session:
        session.execute(select(Job.id).where(Job.id == job_id).with_for_update())
        timer = threading.Timer(seconds, session.rollback)
        timer.start()
        yield
        timer.join()


def test_who_gave_way_does_not_get_the_place_because_somebody_looks_at_the_urgent_one(queue: Queue) -> None:
    busy(queue, ("a", 0))
    queue.add("high", priority=1)
    assert queue.make_room() == ["a"]
    assert give_back(queue, "a") == "queued"
    with held_for(queue, "high", 0.2):
        assert queue.knock(queue.work("w-a")) == "high"


def test_a_knock_is_heard_while_the_dispatcher_still_notes_that_it_knocked(queue: Queue) -> None:
    queue.add("a")
    offer = queue.work("w")
    with held_for(queue, "a", 0.2):
        assert queue.knock(offer, "a") == "a"


def test_what_somebody_frozen_holds_keeps_nobody_else_waiting(queue: Queue) -> None:
    queue.add("high", priority=1)
    queue.add("a")
    offer = queue.work("w")
    with held_for(queue, "high", 3):
        assert queue.knock(offer) == "a"


def test_a_job_that_was_only_looked_at_can_be_cancelled_at_once(queue: Queue) -> None:
    """A worker looks again for a second, since somebody holds the urgent one."""
    queue.add("high", priority=1)
    queue.add("a")
    offer = queue.work("w")
    with ThreadPoolExecutor(1) as threads, held_for(queue, "high", 3):
        knock = threads.submit(queue.knock, offer)
        time.sleep(0.3)
        began = time.monotonic()
        with queue.database.transaction() as session:
            wishes.cancel(session, "a", "a")
        assert time.monotonic() - began < 0.4
        assert knock.result() is None
    assert queue.job("a").status == "cancelled"


def test_nobody_waits_for_the_row_of_one_that_could_give_way(queue: Queue) -> None:
    """Its worker writes to it for up to a second, and the urgent one could not be claimed meanwhile."""
    busy(queue, ("a", 0))
    queue.add("high", priority=1)
    with held_for(queue, "a", 3):
        began = time.monotonic()
        assert queue.make_room() == []
        assert time.monotonic() - began < 1
    assert queue.make_room() == ["a"]


def test_urgent_jobs_for_which_nobody_can_give_way_hide_no_other(queue: Queue) -> None:
    busy(queue, ("a", 0))
    for number in range(yielding.AT_ONCE + 5):
        queue.add(f"high-{number}", priority=1, labels=["h100"])
    queue.add("high", priority=1)
    # 1 in 5 that it is left out of a round: never so often in a row.
    assert any(queue.make_room() == ["a"] for _ in range(30))
    assert queue.job("a").yield_to == "high"


@pytest.mark.parametrize("how", ["succeeds", "dies", "is cancelled", "is paused", "nobody waits"])
def test_races_of_one_that_is_to_give_way(queue: Queue, how: str) -> None:
    busy(queue, ("a", 0))
    queue.add("high", priority=1)
    assert queue.make_room() == ["a"]
    job = queue.job("a")
    held = Claim("a", job.epoch, job.attempt, job.worker or "")
    with queue.database.transaction() as session:
        if how == "succeeds":
            assert claims.succeed(session, held, "ft:a", 1)
        elif how == "dies":
            session.execute(text("UPDATE jobs SET lease_expires_at = now() - interval '1 h' WHERE id = 'a'"))
            assert claims.reap(session, NOW) == ["a"]
        elif how == "is cancelled":
            wishes.cancel(session, "a", "a")
        elif how == "is paused":
            wishes.pause(session, "a", "a")
        else:
            wishes.cancel(session, "high", "a")
    if how == "nobody waits":
        assert queue.make_room() == []
        assert queue.job("a").yield_to is None, "the wish is withdrawn"
        return
    given_back = give_back(queue, "a")
    found = {"succeeds": None, "dies": None, "is cancelled": "cancelled", "is paused": "paused"}
    assert given_back == found[how]
    states = {"succeeds": "succeeded", "dies": "queued"}
    assert queue.job("a").status == states.get(how, given_back)
    assert queue.job("a").yield_to is None
    assert queue.make_room() == [], "its place is free: nobody else is asked"
    assert queue.knock(queue.work("w-a"), "a") == "high"


def test_processes_that_look_at_once_ask_one(queue: Queue) -> None:
    busy(queue, *((f"job-{number}", 0) for number in range(6)))
    queue.add("high", priority=1)
    with ThreadPoolExecutor(6) as threads:
        asked = list(threads.map(lambda _: queue.make_room(), range(6)))
    assert len([job_id for ids in asked for job_id in ids]) == 1


def test_a_job_says_how_urgent_it_is_and_what_it_asks_for(http: httpx2.Client, file_id: str) -> None:
    plain = create(http, file_id).json()
    assert (plain["priority"], plain["requires"]) == ("normal", {"labels": [], "memory_bytes": None})
    asked = {"labels": ["H100", "zone:eu", "h100"], "memory_bytes": 10}
    made = create(http, file_id, priority="low", requires=asked).json()
    assert made["priority"] == "low"
    assert made["requires"] == {"labels": ["h100", "zone:eu"], "memory_bytes": 10}
    assert http.get(f"{JOBS}/{made['id']}").json()["requires"] == made["requires"]


def test_only_a_key_that_may_makes_others_give_way(api: Api, http: httpx2.Client, file_id: str) -> None:
    assert create(http, file_id, priority="high").json()["priority"] == "high"
    scopes = ["files:read", "jobs:write"]
    with (
        api.http(make(http, scopes=scopes)["value"]) as plain,
        api.http(make(http, scopes=[*scopes, "jobs:high"])["value"]) as urgent,
    ):
        for dry in (False, True):
            refused = create(plain, file_id, priority="high", dry_run=dry)
            assert refused.status_code == 403
            assert refused.json()["error"]["param"] == "priority"
            assert "`jobs:high`" in refused.json()["error"]["message"]
        assert create(plain, file_id, priority="low").status_code == 200
        assert create(urgent, file_id, priority="high").status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"priority": 5}, "priority"),
        ({"priority": "urgent"}, "priority"),
        ({"requires": {"labels": ["a b"]}}, "requires.labels.0"),
        ({"requires": {"labels": ["x" * 64]}}, "requires.labels.0"),
        ({"requires": {"labels": [f"l{n}" for n in range(17)]}}, "requires.labels"),
        ({"requires": {"memory_bytes": 0}}, "requires.memory_bytes"),
        ({"requires": {"memory_bytes": 2**63}}, "requires.memory_bytes"),
        ({"requires": {"gpus": 1}}, "requires.gpus"),
        ({"requires": ["h100"]}, "requires"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    http: httpx2.Client, file_id: str, body: dict[str, Any], param: str
) -> None:
    refused = create(http, file_id, **body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_what_a_job_takes_is_reckoned_from_its_model_and_recipe(
    api: Api, http: httpx2.Client, file_id: str
) -> None:
    def reckoned(**body: Any) -> int:
        job_id = create(http, file_id, **body).json()["id"]
        database = WorkerDatabase(api.settings)
        with database.transaction() as session:
            taken = session.get_one(Job, job_id).memory_bytes
        database.close()
        assert taken is not None
        return taken

    usual = reckoned()
    assert footprint.REST < usual < 2 * footprint.REST
    assert reckoned(hyperparameters={"optimizer": "sgd"}) < usual, "no means of gradients"
    assert reckoned(requires={"memory_bytes": 5 * GB}) == 5 * GB, "the user knows better"


JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def file_id(http: httpx2.Client) -> str:
    form: dict[str, Any] = {
        "data": {"purpose": "fine-tune"},
        "files": {"file": ("x.jsonl", b'{"text": "a"}\n')},
    }
    return str(http.post("/v1/files", **form).json()["id"])


def create(http: httpx2.Client, file_id: str, **body: Any) -> httpx2.Response:
    return http.post(JOBS, json={"model": "tiny-gpt2", "training_file": file_id, **body})


def test_jobs_made_at_once_all_know_their_places(http: httpx2.Client, file_id: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = [answer.json() for answer in threads.map(lambda _: create(http, file_id), range(8))]
    assert all(job["queue"] is not None for job in made)
