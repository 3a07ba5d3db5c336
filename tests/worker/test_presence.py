"""A worker's row says the truth, and a worker that has gone deaf notices it by itself."""

import socket
from datetime import timedelta

import pytest
from sqlalchemy import select

from app.lifecycle import announcements
from app.tables import Job, Worker, now
from tests.worker.conftest import Bench, NewBench
from tests.worker.test_supervision import LONG, join, wait_for, wait_for_step
from worker import devices
from worker.health import is_alive
from worker.presence import Presence


@pytest.fixture
def bench(new_bench: NewBench) -> Bench:
    """Its patience is 60 s, and who announces does it every 30: no test gets there by being slow."""
    return new_bench(redispatch=30)


def announce(bench: Bench, job_id: str, ago: float, due: float = 100) -> None:
    with bench.runtime.database.transaction() as session:
        job = session.get_one(Job, job_id)
        job.not_before = now - timedelta(seconds=due)
        job.dispatched_at = now - timedelta(seconds=ago)


def test_the_row_comes_and_goes_with_the_worker(bench: Bench) -> None:
    told = Presence(bench.runtime)
    told.start()
    settings = bench.runtime.settings
    wait_for(lambda: is_alive(settings, socket.gethostname()), "the row")
    told.close()
    with bench.session as session:
        assert session.scalars(select(Worker)).all() == []


def test_silence_while_jobs_are_announced_is_deafness(bench: Bench) -> None:
    told = Presence(bench.runtime)
    job_id = bench.make_job()
    announce(bench, job_id, ago=0)
    assert not told.tell(), "it has only just started to listen"
    bench.runtime._free_since -= 100
    announce(bench, job_id, ago=0)
    assert told.tell()
    announce(bench, job_id, ago=90)
    assert not told.tell(), "nobody announces: the broker is away, and no worker is to blame"
    announce(bench, job_id, ago=0, due=0)
    assert not told.tell(), "the job is only just due"
    announce(bench, job_id, ago=0)
    bench.runtime.heard()
    assert not told.tell(), "messages do come"


def test_a_worker_without_a_free_slot_is_not_deaf(bench: Bench) -> None:
    told = Presence(bench.runtime)
    running, waiting = bench.make_job(**LONG), bench.make_job()
    thread = bench.begin(running)
    wait_for_step(bench, running, 3)
    announce(bench, waiting, ago=0)
    bench.runtime._free_since -= 100
    assert not told.tell()
    bench.runtime.draining.set()
    join(thread)
    assert not told.tell(), "and neither is one that drains"


def test_no_more_is_announced_than_free_slots_can_take(bench: Bench) -> None:
    jobs = [bench.make_job() for _ in range(12)]
    again, fresh = timedelta(seconds=30), timedelta(seconds=9)
    told = Presence(bench.runtime)
    with bench.runtime.database.transaction() as session:
        due = announcements.due(session, again, fresh)
        assert list(due) == jobs[:4], "the smallest window: no worker is known"
        session.get_one(Job, jobs[9]).priority = 1
        session.flush()
        assert announcements.due(session, again, fresh)[0] == jobs[9]
        for job_id in jobs[:3]:
            announcements.mark_dispatched(session, job_id)
        assert list(announcements.due(session, again, fresh)) == [jobs[9]], "three of four are under way"
    told.tell()
    with bench.runtime.database.transaction() as session:
        session.scalars(select(Worker)).one().slots = 4
        session.flush()
        assert len(announcements.due(session, again, fresh)) == 5


def test_devices_are_those_that_the_worker_may_use() -> None:
    said = (
        "0, GPU-1d2e, NVIDIA H100 80GB HBM3, 81559, 1024\n1, GPU-9f3a, NVIDIA H100 80GB HBM3, 81559, [N/A]\n"
    )
    both = devices.read(said, None)
    assert [card["name"] for card in both] == ["NVIDIA H100 80GB HBM3"] * 2
    assert (both[0]["memory_bytes"], both[0]["used_bytes"]) == (81559 * 1024**2, 1024**3)
    assert both[1]["used_bytes"] is None
    assert devices.read(said, "1") == devices.read(said, "GPU-9f") == both[1:]
    assert devices.read(said, "") == []
    assert isinstance(devices.look(), list), "also where there is no driver"
