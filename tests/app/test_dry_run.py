"""`dry_run`: what a job would do is told, what nobody knows is null, and nothing is made."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import text

from app.database import WorkerDatabase
from app.dry_run_shape import DryRun
from app.tables import Worker
from tests.app.conftest import Api
from tests.stand_ins.reporter import Reporter

JOBS = "/v1/fine_tuning/jobs"
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(http: httpx2.Client, client: OpenAI) -> Ask:
    rows = "".join(f'{{"text": "Stir the soup for ten minutes, number {n}."}}\n' for n in range(40))
    file = client.files.create(file=("rows.jsonl", rows.encode()), purpose="fine-tune").id

    def post(**body: Any) -> dict[str, Any]:
        answer = http.post(JOBS, json={"model": "tiny-gpt2", "training_file": file, "dry_run": True, **body})
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        DryRun.model_validate(told)
        return told

    return post


def codes(told: dict[str, Any]) -> set[str]:
    return {warning["code"] for warning in told["warnings"]}


def test_a_dry_run_tells_the_plan_and_makes_nothing(ask: Ask, client: OpenAI) -> None:
    before = len(client.fine_tuning.jobs.list(limit=100).data)
    told = ask(hyperparameters={"n_epochs": 2, "batch_size": 8})
    assert told["exact"]
    assert (told["examples"], told["steps_per_epoch"], told["total_steps"]) == (40, 5, 10)
    assert told["recipe"]["learning_rate"] > 0
    assert told["memory"]["needed_bytes"] > 4 * told["parameters"]
    assert told["memory"]["fits"] in (True, False)
    assert (told["estimated_seconds"], told["estimated_start"]) == (None, None), "nothing was measured yet"
    assert "warmup_too_long" not in codes(told)
    assert len(client.fine_tuning.jobs.list(limit=100).data) == before


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"lr_scheduler_warmup_steps": 1000}, "warmup_too_long"),
        ({"total_train_batch_size": 512}, "batch_larger_than_file"),
        ({"learning_rate": 1.0}, "unusual_learning_rate"),
        ({"learning_rate": 1e-9}, "unusual_learning_rate"),
        ({"early_stopping_patience": 2}, "contradictory_value"),
        ({"max_length": 4, "excess_length": "truncate"}, "rows_too_long"),
        ({"max_length": 100_000}, "invalid_value"),
    ],
)
def test_it_warns(ask: Ask, asked: dict[str, Any], code: str) -> None:
    assert code in codes(ask(hyperparameters=asked))


def test_a_model_that_is_not_here_leaves_the_figures_unknown(ask: Ask) -> None:
    told = ask(model="gpt2")
    assert codes(told) == {"model_not_fetched"}
    assert (told["examples"], told["recipe"], told["memory"]) == (None, None, None)


def test_what_would_be_refused_as_a_job_is_refused(api: Api, http: httpx2.Client, ask: Ask) -> None:
    for wrong in (
        {"training_file": "file-nope"},
        {"model": "gpt-9"},
        {"hyperparameters": {"lr": 1}},
        {"dry_run": "yes"},
        {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
    ):
        body = {"model": "tiny-gpt2", "training_file": "file-nope", "dry_run": True, **wrong}
        assert http.post(JOBS, json=body).status_code == 400


def test_times_are_those_that_earlier_jobs_took(api: Api, ask: Ask, client: OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", b'{"text": "one"}\n'), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file.id)
    database = WorkerDatabase(api.settings)
    worker = Reporter(api.settings, database, job.id)
    worker.prepare()
    worker.fail()
    with database.transaction() as session:
        session.add(Worker(id="w", host="h", slots=1, busy=0, version="1"))
        session.execute(text("UPDATE attempts SET tokens_per_second = 100"))
    database.close()
    told = ask(hyperparameters={"n_epochs": 2})
    assert told["estimated_basis"] == "same_model"
    assert told["estimated_seconds"] == pytest.approx(2 * told["total_tokens"] / 100, abs=1.01)
    assert told["estimated_finish"] - told["estimated_start"] == pytest.approx(
        told["estimated_seconds"], abs=1.01
    )
