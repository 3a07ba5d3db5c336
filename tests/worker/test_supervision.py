"""What is asked of a running attempt, by users and by the world, and how soon it is done."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.lifecycle import claims, wishes
from app.tables import Attempt, Event, Job, Metric, Model, now
from tests.worker.conftest import OWNER, Bench, NewBench
from worker.launch import Trainer, WarmTrainers

LONG: dict[str, Any] = {"steps": 2000, "pause": 0.02, "save": 10}


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def wait_for_step(bench: Bench, job_id: str, step: int) -> None:
    wait_for(lambda: bench.job(job_id).step >= step, f"step {step}")


def join(thread: threading.Thread) -> None:
    """Within seconds, at most before LONG would end by itself."""
    thread.join(35)
    assert not thread.is_alive()


def wish(bench: Bench, verb: Callable[[Session, str, str], None], job_id: str) -> None:
    with bench.runtime.database.transaction() as session:
        verb(session, job_id, OWNER)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
    ("verb", "status"), [(wishes.cancel, "cancelled"), (wishes.pause, "paused")], ids=["cancel", "pause"]
)
def test_a_wish_is_granted_within_seconds_and_keeps_the_last_step(
    bench: Bench, verb: Callable[[Session, str, str], None], status: str
) -> None:
    job_id = bench.make_job(**LONG)
    thread = bench.begin(job_id)
    wait_for_step(bench, job_id, 5)
    wish(bench, verb, job_id)
    join(thread)
    job = bench.job(job_id)
    assert (job.status, job.attempt) == (status, 0)
    assert bench.codes(job_id)[-1] == status
    metrics = bench.rows(Metric, job_id)
    assert metrics[-1].step == job.step
    if status == "paused":
        wish(bench, wishes.resume, job_id)
        thread = bench.begin(job_id)
        wait_for_step(bench, job_id, job.step + 5)
        assert any(event.code == "claimed" for event in bench.rows(Event, job_id))
        wish(bench, wishes.cancel, job_id)
        join(thread)
        steps = [metric.step for metric in bench.rows(Metric, job_id)]
        assert steps == list(range(1, len(steps) + 1))


def test_a_trainer_deaf_to_sigterm_is_killed_after_the_grace(new_bench: NewBench) -> None:
    bench = new_bench(stop_grace=1)
    job_id = bench.make_job({"do": "deaf"}, **LONG)
    thread = bench.begin(job_id)
    wait_for_step(bench, job_id, 5)
    began = time.monotonic()
    wish(bench, wishes.cancel, job_id)
    join(thread)
    assert bench.job(job_id).status == "cancelled"
    assert time.monotonic() - began > 1
    assert bench.rows(Attempt, job_id)[0].exit_code == -signal.SIGKILL


def test_a_drain_gives_the_job_back_at_no_cost(bench: Bench) -> None:
    job_id = bench.make_job(**LONG)
    thread = bench.begin(job_id)
    wait_for_step(bench, job_id, 5)
    bench.runtime.draining.set()
    join(thread)
    job = bench.job(job_id)
    assert (job.status, job.attempt, job.dispatched_at) == ("queued", 0, None)
    assert not bench.runtime.held
    bench.train(job_id)
    assert bench.job(job_id).epoch == 1, "a draining worker claims nothing"


def test_a_drain_between_claim_and_start_gives_the_job_back_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claim_and_drain(*given: object) -> claims.Claim | None:
        bench.runtime.draining.set()
        return real(*given)  # type: ignore[arg-type]

    real = claims.claim
    monkeypatch.setattr("app.lifecycle.turns.claim", claim_and_drain)
    job_id = bench.make_job()
    job = bench.train(job_id)
    assert (job.status, job.attempt, job.epoch) == ("queued", 0, 1)


def test_a_cancel_reaches_a_job_whose_trainer_cannot_be_started(bench: Bench) -> None:
    def no_memory() -> Trainer:
        raise OSError(12, "Cannot allocate memory")

    bench.runtime.trainers = WarmTrainers(no_memory)
    job_id = bench.make_job()
    thread = bench.begin(job_id)
    wait_for(lambda: bench.job(job_id).status == "running", "the claim")
    wish(bench, wishes.cancel, job_id)
    join(thread)
    assert bench.job(job_id).status == "cancelled"


def test_trainers_stand_back_for_other_programs() -> None:
    told = (sys.executable, "-c", "import os, sys; print(os.nice(0), file=sys.stderr)")
    before = os.nice(0)
    trainers = WarmTrainers(lambda: Trainer(told), 7)
    trainer = trainers.take(60, fresh=True)
    assert trainer.end() == 0
    trainers.close()
    assert list(trainer.last_lines) == [str(min(19, before + 7))]
    assert os.nice(0) == before, "the worker does not"


def test_a_second_message_finds_nothing_to_claim(bench: Bench) -> None:
    job_id = bench.make_job(**LONG)
    thread = bench.begin(job_id)
    wait_for_step(bench, job_id, 3)
    bench.train(job_id)
    assert bench.job(job_id).epoch == 1
    bench.runtime.draining.set()
    join(thread)


def test_who_lost_the_claim_stops_at_once_and_writes_nothing(bench: Bench, new_bench: NewBench) -> None:
    job_id = bench.make_job(**LONG)
    thread = bench.begin(job_id)
    wait_for_step(bench, job_id, 5)
    with bench.runtime.database.transaction() as session:
        session.get_one(Job, job_id).lease_expires_at = now - timedelta(seconds=9)
        session.flush()
        assert claims.reap(session, timedelta(0)) == [job_id]
        successor = claims.claim(session, job_id, "another", timedelta(seconds=60))
        before = session.get_one(Job, job_id).step
    assert successor is not None
    join(thread)
    job = bench.job(job_id)
    assert (job.status, job.worker, job.epoch, job.step) == ("running", "another", 3, before)
    assert {metric.epoch for metric in bench.rows(Metric, job_id)} == {1}


def test_no_trainer_outlives_its_worker() -> None:
    """The real trainer, warm and waiting, and one that ignores SIGTERM: `kill -9` of the worker ends both."""
    holder = (
        "import sys, time\nfrom worker.launch import Trainer\n"
        "first = Trainer()\nsecond = Trainer((sys.executable, '-c', "
        "'import ctypes, signal, time; ctypes.CDLL(None).prctl(1, 9);"
        " signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)'))\n"
        "while not second.last_lines: time.sleep(0.1)\n"
        "first.next_event(60)\nprint(first.pid, second.pid, flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    process.kill()
    process.wait()
    wait_for(lambda: not any(alive(pid) for pid in pids), "the trainers' end")


def test_the_database_away_for_longer_than_the_lease_costs_nothing(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new_bench(lease=1)
    database = bench.runtime.database
    real = database.transaction
    away = False

    def transaction() -> object:
        if away:
            raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))
        return real()

    job_id = bench.make_job(steps=100, pause=0.05, save=50)
    monkeypatch.setattr(database, "transaction", transaction)
    thread = bench.begin(job_id)
    wait_for(lambda: _step(bench, job_id) >= 5, "step 5")
    away = True
    time.sleep(1.5)
    assert thread.is_alive()
    away = False
    join(thread)
    job = bench.job(job_id)
    assert (job.status, job.epoch) == ("succeeded", 1)
    assert [metric.step for metric in bench.rows(Metric, job_id)] == list(range(1, 101))


def _step(bench: Bench, job_id: str) -> int:
    with bench.session as session:
        return session.get_one(Job, job_id).step


def test_offline_for_too_long_it_stops_and_gives_the_job_back_unharmed(new_bench: NewBench) -> None:
    bench = new_bench(max_offline=4)
    database = bench.runtime.database
    real = database.transaction
    job_id = bench.make_job(**LONG)
    thread = bench.begin(job_id)
    wait_for_step(bench, job_id, 5)

    def transaction() -> object:
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))

    database.transaction = transaction  # type: ignore[method-assign,assignment]
    # Patience ends after 4 s, and the attempt then tries for 4 s more to tell how it ended.
    wait_for(lambda: f"record-{job_id}" not in names(), "the end of its patience")
    database.transaction = real  # type: ignore[method-assign]
    join(thread)
    job = bench.job(job_id)
    assert (job.status, job.attempt) == ("queued", 0)
    assert bench.rows(Attempt, job_id)[0].reason == "offline"


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_an_answer_lost_after_the_commit_does_not_cost_the_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres commits, and dies before it says so: asked again it says that the job is not running."""
    database = bench.runtime.database
    real = database.transaction
    lost = 0

    @contextmanager
    def transaction() -> Iterator[Session]:
        nonlocal lost
        with real() as session:
            yield session
            job = session.get(Job, job_id)
            done = job is not None and job.status == "succeeded"
        if done and not lost:
            lost += 1
            raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

    job_id = bench.make_job()
    monkeypatch.setattr(database, "transaction", transaction)
    job = bench.train(job_id)
    (model,) = bench.rows(Model, job_id)
    assert lost == 1
    assert job.status == "succeeded"
    assert (bench.runtime.store.scratch(model.key) / "manifest.json").is_file()


def test_a_message_for_a_job_that_is_not_to_be_had_starts_the_first_that_is(bench: Bench) -> None:
    ended, low, first = bench.make_job(steps=1), bench.make_job(steps=1), bench.make_job(steps=1)
    wish(bench, wishes.cancel, ended)
    with bench.runtime.database.transaction() as session:
        session.get_one(Job, first).priority = 1
    for wanted in (first, low):
        assert bench.job(wanted).status == "queued"
        bench.train(ended)
        assert bench.job(wanted).status == "succeeded"
    bench.train(ended)
