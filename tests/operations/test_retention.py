"""What is kept of ended jobs, and for how long; and whether the disk has room before a job begins."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import select, update

from app import retention
from app.database import WorkerDatabase
from app.permissions import grant
from app.recipe import Recipe
from app.tables import Checkpoint, Event, Job, Metric, now
from app.weights import Size, Tensor
from tests.app.conftest import Api, serving
from tests.operations.test_metrics import make_job
from tests.stand_ins.reporter import Reporter
from worker import room
from worker.retention import retire

MONTH = timedelta(days=30)


@pytest.fixture(scope="module")
def database(api: Api) -> Iterator[WorkerDatabase]:
    database = WorkerDatabase(api.settings)
    yield database
    database.close()


@pytest.fixture
def worker(api: Api, client: OpenAI, database: WorkerDatabase) -> Reporter:
    """Holds a job that has checkpoints at steps 5, 10 and 15, the best of them the second."""
    worker = Reporter(api.settings, database, make_job(client))
    worker._rows.keep = 9
    worker.steps(*range(1, 16))
    for step in (5, 10, 15):
        worker.save(step)
    with database.transaction() as session:
        here = (Checkpoint.job_id == worker.job_id, Checkpoint.step == 10)
        session.execute(update(Checkpoint).where(*here).values(best=True))
    return worker


def steps(database: WorkerDatabase, job_id: str) -> list[int]:
    kept = select(Checkpoint.step).where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
    with database.transaction() as session:
        return sorted(session.scalars(kept))


def age(database: WorkerDatabase, job_id: str) -> None:
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(finished_at=now - 2 * MONTH))


def retire_old(database: WorkerDatabase) -> int:
    with database.transaction() as session:
        return retention.retire_checkpoints(session, MONTH)


def checkpoint(http: httpx2.Client, job_id: str, step: int) -> dict[str, object]:
    listed = http.get(f"/v1/fine_tuning/jobs/{job_id}/checkpoints").json()["data"]
    return next(each for each in listed if each["step_number"] == step)


def test_a_job_with_its_model_loses_its_old_checkpoints_and_one_without_keeps_the_last_and_the_best(
    api: Api, client: OpenAI, database: WorkerDatabase, worker: Reporter
) -> None:
    retire_old(database)
    assert steps(database, worker.job_id) == [5, 10, 15], "it runs"
    worker.succeed()
    retire_old(database)
    assert steps(database, worker.job_id) == [5, 10, 15], "it ended today"
    age(database, worker.job_id)
    assert retire_old(database) == 3
    assert steps(database, worker.job_id) == []
    assert retire_old(database) == 0


def test_of_a_failed_job_the_newest_and_the_best_stay(database: WorkerDatabase, worker: Reporter) -> None:
    worker.fail()
    age(database, worker.job_id)
    retire_old(database)
    assert steps(database, worker.job_id) == [10, 15]


def test_what_is_pinned_shared_or_trained_from_stays(
    http: httpx2.Client, client: OpenAI, database: WorkerDatabase, worker: Reporter
) -> None:
    job_id = worker.job_id
    pin = f"/v1/fine_tuning/jobs/{job_id}/checkpoints/{checkpoint(http, job_id, 5)['id']}/pin"
    assert checkpoint(http, job_id, 5)["pinned"] is False
    for _ in range(2):  # the same request twice is the same
        assert http.post(pin).raise_for_status().json()["pinned"] is True
    with database.transaction() as session:  # a running job's own retention heeds it too
        retire(session, job_id, 1)
    assert steps(database, job_id) == [5, 10, 15]
    name = str(checkpoint(http, job_id, 15)["fine_tuned_model_checkpoint"])
    with database.transaction() as session:
        grant(session, "finetuned", name, {"research": "cp_1"})
    worker.succeed()
    age(database, job_id)
    file = client.files.create(file=("b.jsonl", b'{"text": "two"}\n' * 9), purpose="fine-tune")
    again = client.fine_tuning.jobs.create(
        model="tiny-gpt2", training_file=file.id, extra_body={"from_checkpoint": f"{job_id}:10"}
    )
    assert retire_old(database) == 0
    client.fine_tuning.jobs.cancel(again.id)
    assert retire_old(database) == 1
    assert steps(database, job_id) == [5, 15]
    assert http.delete(pin).raise_for_status().json()["pinned"] is False
    assert retire_old(database) == 1
    assert steps(database, job_id) == [15]
    gone = http.post(pin)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "checkpoint_not_found")


def test_a_pin_is_its_owners_alone(api: Api, http: httpx2.Client, worker: Reporter) -> None:
    mine = checkpoint(http, worker.job_id, 5)["id"]
    with api.http(api.stranger_key) as stranger:
        for job_id in (worker.job_id, "ftjob-0"):
            answer = stranger.post(f"/v1/fine_tuning/jobs/{job_id}/checkpoints/{mine}/pin")
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "job_not_found"
    assert checkpoint(http, worker.job_id, 5)["pinned"] is False
    worker.fail()


def test_a_checkpoint_that_a_job_is_being_made_from_is_left_alone(
    database: WorkerDatabase, worker: Reporter
) -> None:
    """The row is held for as long as that takes; whoever waited for it would not see the new job."""
    worker.succeed()
    age(database, worker.job_id)
    with database.transaction() as maker:
        row = select(Checkpoint).where(Checkpoint.job_id == worker.job_id, Checkpoint.step == 5)
        assert maker.scalar(row.with_for_update(read=True)) is not None
        assert retire_old(database) == 2
    assert steps(database, worker.job_id) == [5]
    assert retire_old(database) == 1


def test_nor_does_the_next_save_wait_for_it(
    client: OpenAI, database: WorkerDatabase, worker: Reporter
) -> None:
    worker._rows.keep = 1
    other = make_job(client)
    with ThreadPoolExecutor(1) as threads:
        with database.transaction() as maker:
            row = select(Checkpoint.key).where(Checkpoint.job_id == worker.job_id, Checkpoint.step == 5)
            key = maker.scalar(row.with_for_update(read=True))
            save = threads.submit(worker.save, 20)
            time.sleep(0.5)
            assert steps(database, worker.job_id) == [5, 10, 20]
            maker.execute(update(Job).where(Job.id == other).values(source=f"store:{key}"))
        save.result()
    worker.save(21)
    assert steps(database, worker.job_id) == [5, 10, 21]
    client.fine_tuning.jobs.cancel(other)
    worker.fail()


def test_events_go_and_curves_are_thinned_once(database: WorkerDatabase, worker: Reporter) -> None:
    job_id = worker.job_id
    long = 2 * retention.POINTS
    worker.steps(*range(16, long + 1))
    worker.evaluate(701)
    worker.succeed()

    def count() -> tuple[int, list[int]]:
        with database.transaction() as session:
            events = session.scalars(select(Event.id).where(Event.job_id == job_id)).all()
            return len(events), sorted(session.scalars(select(Metric.step).where(Metric.job_id == job_id)))

    before, curve = count()
    assert before > 5
    assert len(curve) == long
    with database.transaction() as session:
        retention.forget_events(session, MONTH)
        retention.thin_metrics(session, MONTH)
    assert count() == (before, curve), "it ended today"
    age(database, job_id)
    with database.transaction() as session:
        assert retention.forget_events(session, MONTH) >= before
        assert retention.thin_metrics(session, MONTH) >= 1
    left, curve = count()
    assert left == 0
    assert len(curve) <= retention.POINTS + 3
    assert {1, 2, 701, long} <= set(curve)
    assert 3 not in curve
    with database.transaction() as session:
        assert retention.thin_metrics(session, MONTH) == 0, "once is enough"


def test_the_curves_of_long_jobs_are_thinned_one_by_one(
    api: Api, client: OpenAI, database: WorkerDatabase, worker: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million points take a second, in which their rows are locked."""

    def thin() -> int:
        with database.transaction() as session:
            return retention.thin_metrics(session, MONTH)

    while thin():
        pass
    worker.succeed()
    age(database, worker.job_id)
    for _ in range(3):
        other = Reporter(api.settings, database, make_job(client))
        other.steps(1, 2)
        other.fail()
        age(database, other.job_id)
    monkeypatch.setattr(retention, "THINNED", 4)
    assert [thin() for _ in range(4)] == [1, 2, 1, 0], (
        "the first has 15 points, more than are thinned at once"
    )


def test_the_dispatcher_does_it_and_nothing_by_default(
    api: Api, database: WorkerDatabase, worker: Reporter
) -> None:
    worker.succeed()
    age(database, worker.job_id)
    assert steps(database, worker.job_id) == [5, 10, 15], "the API of all tests here has no retention"
    for name in ("checkpoint", "event", "metric"):
        assert getattr(api.settings, f"{name}_retention") is None
    with serving(api.settings.model_copy(update={"checkpoint_retention": MONTH})):
        deadline = time.monotonic() + 60
        while steps(database, worker.job_id) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert steps(database, worker.job_id) == []


def test_what_a_job_writes_is_compared_with_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = Tensor("h.0.attn.c_attn.weight", (1000, 1000))
    size = Size((matrix,), layers=1, width=1000, vocabulary=10)
    full = Recipe.from_request({"num_epochs": 9})
    assert room.least(full, size) == 3 * 12 * 10**6
    once = Recipe.from_request({"num_epochs": 1})
    assert room.least(once, size) == 12 * 10**6
    lora = Recipe.from_request({"num_epochs": 1, "lora_rank": 8})
    assert room.least(lora, size) == 2 * 10**6 + 12 * 8 * 2000
    line = {
        "resume": [],
        "model": "m",
        "out": str(tmp_path / "not" / "yet"),
        "recipe": full.model_dump(mode="json"),
    }
    room.check(line)  # no model to be measured: the trainer will say so
    monkeypatch.setattr(room, "measure", lambda _: size)
    room.check(line)
    enormous = Size((Tensor("w", (10**9, 10**6)),), layers=1, width=1, vocabulary=1)
    monkeypatch.setattr(room, "measure", lambda _: enormous)
    with pytest.raises(room.NoRoom, match="36,000,000,000,000,000 bytes"):
        room.check(line)
    room.check({**line, "resume": ["a checkpoint"]})
