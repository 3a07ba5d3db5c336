"""The list of jobs: filtered, searched, with small curves; and the attempts of one."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import text

from app.database import WorkerDatabase
from app.lifecycle import claims
from tests.app.conftest import Api

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def database(api: Api) -> Iterator[WorkerDatabase]:
    database = WorkerDatabase(api.settings)
    yield database
    database.close()


@pytest.fixture
def made(client: OpenAI, rows: Path) -> list[str]:
    """Three jobs, oldest first; the second is cancelled."""
    file = client.files.create(file=rows, purpose="fine-tune")
    jobs = client.fine_tuning.jobs
    ids = [
        jobs.create(model="tiny-gpt2", training_file=file.id, suffix=suffix).id
        for suffix in ("bread", "per_cent", "Bread-two")
    ]
    jobs.cancel(ids[1])
    return ids


def listed(http: httpx2.Client, made: list[str], **asked: Any) -> list[str]:
    """Those of `made` that the list has."""
    answer = http.get(JOBS, params={"limit": 1000, **asked})
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"] if job["id"] in made]


def test_jobs_are_chosen_by_status_and_by_any_part_of_a_name(http: httpx2.Client, made: list[str]) -> None:
    first, second, third = made
    assert listed(http, made, status="cancelled") == [second]
    assert listed(http, made, status=["cancelled", "queued"]) == [third, second, first]
    assert listed(http, made, search="bread") == [third, first]
    assert listed(http, made, search="per_c") == [second]
    assert listed(http, made, search="per%cent") == [], "no pattern, but letters"
    assert listed(http, made, search=first[-10:].upper()) == [first]
    assert listed(http, made, search="TINY", status="queued") == [third, first]


def test_pages_go_on_within_a_filter(http: httpx2.Client, made: list[str]) -> None:
    page = http.get(JOBS, params={"limit": 1, "search": "bread"}).json()
    assert page["has_more"]
    after = page["last_id"]
    assert listed(http, made, search="bread", after=after)[:1] == [made[0]]
    # A job may leave the filter between two pages: the next one goes on behind it all the same.
    assert listed(http, made, search="bread", after=made[1]) == [made[0]]


@pytest.mark.parametrize(("name", "value"), [("status", "done"), ("points", 1), ("search", "x" * 201)])
def test_what_cannot_be_asked_is_named(http: httpx2.Client, name: str, value: Any) -> None:
    answer = http.get(JOBS, params={name: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].split(".")[0] == name


def test_a_small_curve_spans_the_run_and_has_no_nulls(
    http: httpx2.Client, database: WorkerDatabase, made: list[str]
) -> None:
    with database.transaction() as session:
        session.execute(
            text(
                "INSERT INTO metrics (job_id, step, epoch, loss)"
                " SELECT :job, n, 1, CASE WHEN n % 2 = 1 THEN 1.0 / n END FROM generate_series(1, 1000) n"
            ),
            {"job": made[0]},
        )
        session.execute(text("UPDATE jobs SET step = 1000 WHERE id = :job"), {"job": made[0]})
    told = {job["id"]: job for job in http.get(JOBS, params={"points": 11, "search": "bread"}).json()["data"]}
    curve = told[made[0]]["loss_curve"]
    assert [step for step, _ in curve] == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    assert all(loss == pytest.approx(1 / step) for step, loss in curve)
    assert told[made[2]]["loss_curve"] == []
    assert "loss_curve" not in http.get(JOBS).json()["data"][0]


def test_attempts_are_told_newest_first_with_what_ended_them(
    http: httpx2.Client, database: WorkerDatabase, made: list[str]
) -> None:
    url = f"{JOBS}/{made[0]}/attempts"
    assert http.get(url).json() == {"object": "list", "data": [], "has_more": False}
    for _ in range(2):
        with database.transaction() as session:
            held = claims.claim(session, made[0], "worker-1", timedelta(minutes=5))
            assert held is not None
            error = claims.JobError("worker_crashed", "It crashed.")
            claims.retry(session, held, error, timedelta(0), exit_code=-9)
    told = http.get(url).json()["data"]
    assert [attempt["number"] for attempt in told] == [2, 1]
    assert told[0]["worker"] == "worker-1"
    assert told[0]["reason"] == "worker_crashed"
    assert told[0]["exit_code"] == -9
    page = http.get(url, params={"limit": 1}).json()
    assert page["has_more"]
    rest = http.get(url, params={"before": page["data"][0]["number"]}).json()
    assert [attempt["number"] for attempt in rest["data"]] == [1]


def test_a_job_tells_what_was_given_besides_what_was_made_of_it(client: OpenAI, rows: Path) -> None:
    file = client.files.create(file=rows, purpose="fine-tune")
    given = {"n_epochs": 2, "learning_rate": "auto"}
    job = client.fine_tuning.jobs.create(
        model="tiny-gpt2", training_file=file.id, extra_body={"hyperparameters": given}
    )
    told = job.model_dump()
    assert told["given"] == given
    assert told["recipe"]["num_epochs"] == 2
    assert told["owner"]


def test_events_of_one_code_or_type_alone(http: httpx2.Client, made: list[str]) -> None:
    events = http.get(f"{JOBS}/{made[1]}/events", params={"code": "cancelled"}).json()["data"]
    assert [event["data"]["code"] for event in events] == ["cancelled"]
    assert http.get(f"{JOBS}/{made[1]}/events", params={"code": "sampled"}).json()["data"] == []
    assert len(http.get(f"{JOBS}/{made[1]}/events", params={"type": "message"}).json()["data"]) == 2
    assert http.get(f"{JOBS}/{made[1]}/events", params={"type": "metrics"}).json()["data"] == []
