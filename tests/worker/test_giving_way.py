"""A worker that is asked to give way, and one that runs several jobs on one card."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.lifecycle import wishes, yielding
from app.tables import Attempt, Job, Metric, Model, now
from tests.worker.conftest import Bench, NewBench
from tests.worker.test_supervision import LONG, join, wait_for, wait_for_step, wish
from worker import tasks

# The first two attempts wait behind these steps until they are asked to stop.
SHORT: dict[str, Any] = {"steps": 60, "pause": 0.01, "save": 10}
WAITS = [{"do": "silent", "at": at, "below": epoch + 1} for epoch, at in ((1, 8), (2, 28))]


def ask(bench: Bench, job_id: str) -> None:
    with bench.runtime.database.transaction() as session:
        assert yielding.ask(session, job_id, "ftjob-urgent", 1)


def change(bench: Bench, job_id: str, **values: Any) -> None:
    with bench.runtime.database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(**values))


def weights(bench: Bench, job_id: str) -> bytes:
    model = bench.rows(Model, job_id)[0]
    return bench.runtime.store.get(f"{model.key}/model.safetensors")


def test_who_gave_way_goes_on_at_the_next_step_and_ends_the_same(bench: Bench) -> None:
    calm = bench.make_job(*WAITS, **SHORT)
    change(bench, calm, epoch=2)
    assert bench.train(calm).status == "succeeded"
    rough = bench.make_job(*WAITS, **SHORT)
    for stop in (8, 28):
        thread = bench.begin(rough)
        wait_for_step(bench, rough, stop)
        ask(bench, rough)
        join(thread)
        job = bench.job(rough)
        assert (job.status, job.attempt, job.yield_to) == ("queued", 0, None)
        assert bench.codes(rough)[-1] == "preempted"
    assert bench.train(rough).status == "succeeded"
    assert [attempt.reason for attempt in bench.rows(Attempt, rough)] == ["preempted"] * 2 + ["finished"]
    assert [metric.step for metric in bench.rows(Metric, rough)] == list(range(1, 61))
    assert weights(bench, rough) == weights(bench, calm)


@pytest.mark.parametrize("verb", [wishes.cancel, wishes.pause], ids=["cancelled", "paused"])
def test_a_users_wish_wins_over_giving_way(bench: Bench, verb: Any) -> None:
    job_id = bench.make_job(**LONG)
    thread = bench.begin(job_id)
    wait_for_step(bench, job_id, 3)

    def both(session: Session, job_id: str, owner: str) -> None:
        assert yielding.ask(session, job_id, "ftjob-urgent", 1)
        verb(session, job_id, owner)

    wish(bench, both, job_id)
    join(thread)
    assert bench.job(job_id).status == {wishes.cancel: "cancelled", wishes.pause: "paused"}[verb]


def test_a_worker_takes_one_job_after_another_without_a_message_for_each(bench: Bench) -> None:
    jobs = [bench.make_job(steps=2) for _ in range(4)]
    change(bench, jobs[3], labels=["elsewhere"])
    tasks.train_all(bench.runtime, "ftjob-unknown")
    assert [bench.job(job_id).status for job_id in jobs] == ["succeeded"] * 3 + ["queued"]


def test_threads_that_claim_at_once_stay_within_the_budget(new_bench: NewBench) -> None:
    bench = new_bench(worker_slots=4)
    bench.runtime.offer = replace(bench.runtime.offer, budget=10, slots=4)
    jobs = [bench.make_job() for _ in range(6)]
    for job_id in jobs:
        change(bench, job_id, memory_bytes=4)
    with ThreadPoolExecutor(6) as threads:
        held = list(threads.map(lambda job_id: bench.runtime.claim(job_id), jobs))
    assert len([claim for claim in held if claim is not None]) == 2


def test_a_worker_with_room_again_has_others_announced(new_bench: NewBench) -> None:
    bench = new_bench(worker_slots=2)
    first, waiting = bench.make_job(steps=2), bench.make_job(steps=2)
    change(bench, waiting, labels=["elsewhere"], dispatched_at=now)
    tasks.train_all(bench.runtime, first)
    wait_for(lambda: bench.job(waiting).dispatched_at is None, "the knock")
    assert bench.job(first).status == "succeeded"
