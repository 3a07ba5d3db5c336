"""Where a queued job stands and when it will begin: measured, or null."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import event, text

from app import forecast
from app.database import WorkerDatabase
from app.forecast import Measured, Work
from app.lifecycle import claims
from app.tables import Worker
from tests.app.conftest import Api
from tests.flow.stack import wait_for

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LEASE = timedelta(minutes=5)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def measured(source: str = "a", speed: float = 100.0, parameters: int = 1000, lora: bool = False) -> Measured:
    return Measured(source, lora, parameters, speed, "file-1", 500, 2000, "cpu", None)


def test_speed_is_that_of_the_same_model_or_scaled_by_parameters_or_unknown() -> None:
    past = [measured("a", 100), measured("a", 300), measured("a", 120), measured("b", 9)]
    assert forecast.speed(Work("a", False, 1, None), past) == (120, "same_model")
    assert forecast.speed(Work("c", False, 1, 2000), [measured("a", 100)]) == (50, "scaled_by_flops")
    assert forecast.speed(Work("c", False, 1, None), past) is None
    assert forecast.speed(Work("c", True, 1, 2000), past) is None
    assert forecast.speed(Work("a", False, 1, 2000), []) is None


def test_tokens_are_those_counted_before_or_go_by_bytes() -> None:
    assert forecast.epoch_tokens("a", "file-1", 9, [measured()]) == 500
    assert forecast.epoch_tokens("a", "file-2", 8000, [measured()]) == 2000
    assert forecast.epoch_tokens("b", "file-1", 8000, [measured()]) is None


def test_jobs_begin_when_slots_become_free() -> None:
    assert forecast.starts([10, 10, 10], [at(0), at(5)]) == [at(0), at(5), at(10)]
    assert forecast.starts([None, 10, 10], [at(0)]) == [at(0), None, None]
    assert forecast.starts([None, 10, 10], [at(0), at(7)]) == [at(0), at(7), at(17)]
    assert forecast.starts([1], []) == [None]


@pytest.fixture
def database(api: Api) -> Iterator[WorkerDatabase]:
    database = WorkerDatabase(api.settings)
    yield database
    with database.transaction() as session:
        session.execute(
            text("UPDATE jobs SET status = 'cancelled', finished_at = now() WHERE status = 'queued'")
        )
        session.execute(text("DELETE FROM workers"))
    database.close()


@pytest.fixture
def make(client: OpenAI, rows: Path) -> Callable[..., str]:
    file = client.files.create(file=rows, purpose="fine-tune").id
    return lambda **named: (
        client.fine_tuning.jobs.create(**{"model": "tiny-gpt2", "training_file": file, **named}).id
    )


def queues(client: OpenAI) -> dict[str, Any]:
    jobs = client.fine_tuning.jobs.list(limit=100)
    return {job.id: (job.queue, job.estimated_finish) for job in jobs}  # type: ignore[attr-defined]


def test_a_queued_job_tells_its_place_and_no_time_that_nobody_measured(
    client: OpenAI, make: Callable[..., str], database: WorkerDatabase
) -> None:
    ids = [make() for _ in range(3)]
    found = queues(client)
    assert [found[id_] for id_ in ids] == [
        ({"position": place, "estimated_start": None}, None) for place in (1, 2, 3)
    ]
    with database.transaction() as session:
        session.execute(text("UPDATE jobs SET priority = 1 WHERE id = :id"), {"id": ids[2]})
    # A poll may be told what was counted half a second ago.
    wait_for(lambda: queues(client)[ids[2]][0]["position"] == 1, "a new count")
    wait_for(lambda: client.fine_tuning.jobs.retrieve(ids[2]).queue["position"] == 1, "its poll")  # type: ignore[attr-defined]
    client.fine_tuning.jobs.pause(ids[0])
    assert queues(client)[ids[0]] == (None, None)
    assert queues(client)[ids[1]][0]["position"] == 2


def test_times_are_those_that_earlier_jobs_took(
    client: OpenAI, make: Callable[..., str], database: WorkerDatabase
) -> None:
    first = make(hyperparameters={"n_epochs": 1})
    with database.transaction() as session:
        session.add(Worker(id="w", host="h", slots=1, busy=0, version="1"))
        held = claims.claim(session, first, "w", LEASE)
        assert held is not None
        session.execute(
            text("UPDATE attempts SET device = 'cpu', tokens_per_second = 10 WHERE job_id = :id"),
            {"id": first},
        )
        session.execute(
            text("UPDATE jobs SET parameters = 1, epoch_tokens = 100 WHERE id = :id"), {"id": first}
        )
        assert claims.fail(session, held, claims.JobError("x", "x"))
    two, four = (make(hyperparameters={"n_epochs": epochs}) for epochs in (2, 4))
    before = datetime.now(UTC).timestamp()
    found = queues(client)
    (queue, finish), (queue2, finish2) = found[two], found[four]
    assert queue["estimated_start"] == pytest.approx(before, abs=2)
    assert finish == pytest.approx(before + 20, abs=2), "two epochs of 100 tokens, ten a second"
    assert queue2["estimated_start"] == finish
    assert finish2 == pytest.approx(before + 60, abs=2)


def test_a_page_of_jobs_costs_a_fixed_number_of_statements(
    make: Callable[..., str], database: WorkerDatabase
) -> None:
    ids = [make() for _ in range(10)]
    statements: list[str] = []

    def count(*given: Any) -> None:
        statements.append(given[2])

    with database.transaction() as session:
        event.listen(database.engine, "before_cursor_execute", count)
        places = forecast.line(session, timedelta(seconds=9))
        event.remove(database.engine, "before_cursor_execute", count)
    assert sorted(places[job_id].position for job_id in ids) == list(range(1, 11))
    assert len(statements) == 5
