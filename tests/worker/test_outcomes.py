"""How trainers die, one row each, and what becomes of their jobs."""

import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from app.lifecycle import claims
from app.tables import Attempt, Checkpoint, Event, Job, Metric, Model
from tests.worker.conftest import Bench, NewBench
from worker import order, room
from worker.hub import HubUnreachable
from worker.training.events import Notice, line

MIDDLE = {"at": 7}  # after the checkpoint at step 5


def leaves(code: int, failure: str | None = None) -> dict[str, Any]:
    said = {"failure": {"code": failure, "message": "As it said."}} if failure else {}
    return {"do": "exit", "code": code, **MIDDLE, **said}


def killed(number: int) -> dict[str, Any]:
    return {"do": "signal", "number": number, **MIDDLE}


@dataclass(frozen=True)
class Death:
    """After one message: the job's status, its error, the attempts used up, and what its events tell."""

    act: dict[str, Any]
    status: str
    error: str | None
    used: int
    told: str


DEATHS = {
    "out of memory": Death(leaves(77, "out_of_memory"), "failed", "out_of_memory", 1, "out_of_memory"),
    "out of memory without a word": Death(leaves(77), "failed", "out_of_memory", 1, "out_of_memory"),
    "bad recipe": Death(leaves(78, "invalid_recipe"), "failed", "invalid_recipe", 1, "invalid_recipe"),
    "bad data": Death(leaves(78, "bad_file"), "failed", "bad_file", 1, "bad_file"),
    "full disk": Death(leaves(79, "disk_full"), "failed", "disk_full", 1, "disk_full"),
    "no number": Death(leaves(80, "non_finite"), "failed", "non_finite", 1, "non_finite"),
    "time over": Death(leaves(81), "failed", "max_runtime_exceeded", 1, "max_runtime_exceeded"),
    "its own watchdog": Death(leaves(82, "stalled"), "failed", "stalled", 1, "stalled"),
    "an exception": Death(leaves(1, "internal_error"), "queued", None, 1, "internal_error"),
    "an unknown code": Death(leaves(3), "queued", None, 1, "worker_crashed"),
    "abort": Death(killed(signal.SIGABRT), "queued", None, 1, "worker_crashed"),
    "the kernel's killer": Death(killed(signal.SIGKILL), "queued", None, 1, "worker_crashed"),
    "stopped by somebody": Death(leaves(75), "queued", None, 0, "interrupted"),
    "silence": Death({"do": "silent", **MIDDLE}, "failed", "stalled", 1, "stalled"),
    "leaving without a model": Death({"do": "vanish", **MIDDLE}, "queued", None, 1, "worker_crashed"),
    "a damaged model": Death({"do": "spoil"}, "queued", None, 1, "publish_failed"),
    "a closed stdout": Death({"do": "shut", **MIDDLE}, "queued", None, 1, "worker_crashed"),
    "a helper that lives on": Death({"do": "hold", **MIDDLE}, "queued", None, 1, "worker_crashed"),
}  # fmt: skip


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS.keys())
def test_a_death_has_its_outcome(new_bench: NewBench, death: Death) -> None:
    # Longer than a busy machine takes from one of its words to the next; others would wait for a minute.
    bench = new_bench(stall=4) if death.act["do"] == "silent" else new_bench()
    job_id = bench.make_job(death.act)
    job = bench.train(job_id)
    assert (job.status, job.error_code, job.attempt) == (death.status, death.error, death.used)
    (attempt,) = bench.rows(Attempt, job_id)
    assert attempt.ended_at is not None
    assert attempt.reason == death.told
    assert death.told in bench.codes(job_id)
    assert bench.rows(Model, job_id) == []
    steps = [metric.step for metric in bench.rows(Metric, job_id)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 7
    assert [row.step for row in bench.rows(Checkpoint, job_id)][:1] == [5]


def test_finished_is_published_with_every_step(bench: Bench) -> None:
    job_id = bench.make_job(steps=12)
    job = bench.train(job_id)
    (model,) = bench.rows(Model, job_id)
    assert (job.status, job.fine_tuned_model, job.step) == ("succeeded", model.name, 12)
    assert (bench.runtime.store.scratch(model.key) / "model.safetensors").is_file()
    assert [metric.step for metric in bench.rows(Metric, job_id)] == list(range(1, 13))
    assert [row.reason for row in bench.rows(Attempt, job_id)] == ["finished"]


def test_after_any_crash_the_result_is_the_undisturbed_one(bench: Bench) -> None:
    calm = bench.make_job(steps=20, max_attempts=9)
    bench.train(calm)
    acts = [
        {"do": "signal", "number": 9, "at": at, "below": epoch} for epoch, at in ((2, 3), (3, 8), (4, 19))
    ]
    rough = bench.make_job(*acts, steps=20, max_attempts=9)
    job = bench.until_end(rough)
    # The script is part of the data, and so of the weights; steps and folders are what must agree.
    assert (job.status, job.epoch, job.step) == ("succeeded", 4, 20)
    assert [metric.step for metric in bench.rows(Metric, rough)] == list(range(1, 21))
    assert [row.step for row in bench.rows(Checkpoint, rough)] == [
        row.step for row in bench.rows(Checkpoint, calm)
    ]


def test_a_crash_loop_ends_with_the_last_fifty_lines(new_bench: NewBench) -> None:
    bench = new_bench(retry_delay=30)
    abort = {"do": "signal", "number": signal.SIGABRT, "at": 3}
    poison = bench.make_job({"do": "log", "line": "line #", "times": 80, "at": 2}, abort)
    good = [bench.make_job(steps=2) for _ in range(5)]
    delays = []
    for _ in range(3):
        job = bench.train(poison)
        attempts = bench.rows(Attempt, poison)
        delays.append((job.not_before - attempts[-1].ended_at).total_seconds())
        with bench.runtime.database.transaction() as session:
            session.get_one(type(job), poison).not_before = job.created_at
    assert (job.status, job.error_code, job.attempt) == ("failed", "worker_crashed", 3)
    assert 20 < delays[0] < 40 < delays[1] < 80
    assert job.error_message is not None
    assert "signal 6" in job.error_message
    assert [f"line {number}" in job.error_message for number in (79, 30, 29)] == [True, True, False]
    assert [row.exit_code for row in bench.rows(Attempt, poison)] == [-6, -6, -6]
    assert bench.train(poison).status == "failed"
    assert [bench.train(job_id).status for job_id in good] == ["succeeded"] * 5


def test_a_job_that_gets_further_each_time_may_crash_more_often(bench: Bench) -> None:
    acts = [{"do": "signal", "number": 9, "at": 2 * epoch, "below": epoch + 1} for epoch in range(1, 7)]
    job_id = bench.make_job(*acts, steps=14, save=2, max_attempts=2)
    job = bench.until_end(job_id)
    assert (job.status, job.epoch) == ("succeeded", 7)
    stuck = bench.make_job({"do": "signal", "number": 9, "at": 5}, steps=14, save=2, max_attempts=2)
    job = bench.until_end(stuck)
    assert (job.status, job.epoch) == ("failed", 2)


def test_a_trainer_that_cannot_even_start_ends_in_a_failed_job(new_bench: NewBench) -> None:
    bench = new_bench((sys.executable, "-c", "raise ImportError('libcuda is not what it was')"))
    job = bench.until_end(bench.make_job())
    assert (job.status, job.error_code, job.attempt) == ("failed", "worker_crashed", 3)
    assert "libcuda is not what it was" in (job.error_message or "")


def test_a_file_that_is_gone_and_a_model_that_cannot_be_used_fail_at_once(bench: Bench) -> None:
    lost, strange = bench.make_job(), bench.make_job()
    bench.runtime.store.scratch(f"files/file-{0:024x}").unlink()
    with bench.runtime.database.transaction() as session:
        session.get_one(type(bench.job(strange)), strange).source = "folder:nowhere"
    assert bench.train(lost).error_code == "file_not_found"
    assert bench.train(strange).error_code == "model_unavailable"


def test_a_disk_that_is_too_small_fails_the_job_before_its_first_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is needed is the test's word: no model here is as large as a disk."""
    monkeypatch.setattr(room, "least", lambda *_: 2**62)
    job = bench.train(bench.make_job())
    assert (job.status, job.error_code, job.attempt, job.step) == ("failed", "disk_full", 1, 0)
    assert "4,611,686,018,427,387,904 bytes" in (job.error_message or "")


def test_a_finding_that_was_to_be_refused_fails_the_job_before_its_first_step(bench: Bench) -> None:
    job_id = bench.make_job()
    with bench.runtime.database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(refuse_on=["few_rows"]))
    job = bench.train(job_id)
    assert (job.status, job.error_code, job.error_param, job.step) == (
        "failed", "refused_finding", "training_file", 0,
    )  # fmt: skip
    assert "few_rows (1 rows, the first in line 1)" in (job.error_message or "")


def test_a_hub_out_of_reach_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub itself is never asked in tests: what it answers is not ours to choose."""

    def away(*_: object) -> None:
        raise HubUnreachable("the Hugging Face hub cannot be reached")

    monkeypatch.setattr(order, "base_folder", away)
    job_id = bench.make_job()
    job = bench.train(job_id)
    assert (job.status, job.attempt) == ("queued", 1)
    job = bench.until_end(job_id)
    assert (job.status, job.attempt, job.error_code, job.error_param) == (
        "failed",
        3,
        "model_unavailable",
        "model",
    )


def test_what_fitted_into_memory_is_told_to_the_next_attempt(bench: Bench) -> None:
    halved = [
        {"do": "say", "line": line(Notice("warn", "micro_batch_halved", "", {"train_batch_size": size}))}
        for size in (4, 2)
    ]
    job_id = bench.make_job(*halved, {"do": "exit", "code": 75, "at": 3, "below": 2})
    assert bench.train(job_id).status == "queued"
    with bench.runtime.database.transaction() as session:
        session.get_one(Job, job_id).not_before = session.get_one(Job, job_id).created_at
        held = claims.claim(session, job_id, "me", timedelta(seconds=60))
        assert held is not None
        told = order.read(session, held, bench.runtime.store, bench.runtime.settings)
    assert told.line["fits"] == 2


def test_two_jobs_whose_ids_end_alike_both_have_their_model(bench: Bench) -> None:
    names = []
    for first in "ab":
        job = bench.train(bench.make_job(job_id=f"ftjob-{16 * first}12345678"))
        assert job.status == "succeeded", job.error_message
        names.append(job.fine_tuned_model)
    assert names == ["ft:tiny-gpt2:finetuned::12345678", "ft:tiny-gpt2:finetuned::bbbbbbbb12345678"]


def test_a_fault_of_the_worker_costs_an_attempt_and_not_a_lease(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("save_total_limit")

    monkeypatch.setattr(order, "read", broken)
    job_id = bench.make_job()
    job = bench.train(job_id)
    assert (job.status, job.attempt) == ("queued", 1)
    assert "internal_error" in bench.codes(job_id)
    assert any("save_total_limit" in event.message for event in bench.rows(Event, job_id))
