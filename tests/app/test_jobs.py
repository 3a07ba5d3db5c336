"""Jobs over the wire while no worker runs: what is accepted, what is refused and how, and who sees it."""

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.app.conftest import Api

CARD = {
    "learning_rate": 0.0005,
    "train_batch_size": 64,
    "eval_batch_size": 64,
    "seed": 42,
    "gradient_accumulation_steps": 8,
    "total_train_batch_size": 512,
    "optimizer": "Adam with betas=(0.9,0.999) and epsilon=1e-08",
    "lr_scheduler_type": "cosine",
    "lr_scheduler_warmup_steps": 1000,
    "num_epochs": 20,
    "mixed_precision_training": "Native AMP",
}


@pytest.fixture
def file_id(client: OpenAI, rows: Path) -> str:
    return client.files.create(file=rows, purpose="fine-tune").id


@pytest.fixture
def make(client: OpenAI, file_id: str) -> Callable[..., FineTuningJob]:
    def create(**named: Any) -> FineTuningJob:
        return client.fine_tuning.jobs.create(**{"model": "tiny-gpt2", "training_file": file_id, **named})

    return create


Make = Callable[..., FineTuningJob]


def test_a_new_job_is_queued_and_reads_strictly_as_the_sdk_wants_it(make: Make) -> None:
    job = make(suffix="cards", metadata={"team": "kitchen"})
    assert (job.status, job.model, job.error, job.result_files) == ("queued", "tiny-gpt2", None, [])
    assert job.metadata == {"team": "kitchen"}
    assert job.hyperparameters.n_epochs == "auto"
    FineTuningJob.model_validate_json(job.model_dump_json(), strict=True)


def test_the_reference_card_is_a_job(make: Make) -> None:
    job = make(extra_body={"hyperparameters": CARD})
    assert job.hyperparameters.n_epochs == 20
    assert job.hyperparameters.batch_size == 512
    recipe: dict[str, Any] = job.recipe  # type: ignore[attr-defined]
    assert recipe["learning_rate"] == 0.0005
    assert recipe["lr_scheduler_warmup_steps"] == 1000
    assert (recipe["adam_beta1"], recipe["adam_beta2"], recipe["adam_epsilon"]) == (0.9, 0.999, 1e-8)
    assert job.seed == 42


def test_openais_hyperparameters_are_taken_in_either_place(make: Make) -> None:
    old = make(hyperparameters={"n_epochs": 2, "batch_size": 8})
    new = make(method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}})
    assert old.hyperparameters.n_epochs == new.hyperparameters.n_epochs == 2


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": "gpt-9"}, "model", "model_not_found"),
        ({"training_file": "file-nope"}, "training_file", "invalid_training_file"),
        ({"validation_file": "file-nope"}, "validation_file", "invalid_validation_file"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"suffix": "x" * 65}, "suffix", "invalid_value"),
        ({"modle": "x"}, "modle", "unknown_parameter"),
        ({"hyperparameters": {"learning_rat": 1e-3}}, "hyperparameters.learning_rat", "unknown_parameter"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"learning_rate": "fast"}}, "hyperparameters.learning_rate", "invalid_value"),
        (
            {
                "hyperparameters": {
                    "train_batch_size": 4,
                    "gradient_accumulation_steps": 2,
                    "total_train_batch_size": 9,
                }
            },
            "hyperparameters.total_train_batch_size",
            "contradictory_value",
        ),
        (
            {
                "hyperparameters": {"n_epochs": 1},
                "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
            },
            "hyperparameters.n_epochs",
            "contradictory_value",
        ),
        ({"method": {"type": "reinforcement"}}, "method.type", "unsupported_method"),
        ({"method": {"type": "supervise"}}, "method.type", "invalid_value"),
        ({"metadata": {"k": "v" * 513}}, "metadata", "invalid_value"),
        ({"metadata": {"k": "a\0b"}}, None, "invalid_value"),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]},
            "integrations.0.type",
            "unsupported_integration",
        ),
    ],
)
def test_a_bad_request_is_refused_by_field(
    client: OpenAI, file_id: str, change: dict[str, Any], param: str | None, code: str | None
) -> None:
    before = len(client.fine_tuning.jobs.list(limit=1000).data)
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file_id, extra_body=change)
    assert refused.value.param == param
    assert refused.value.code == code
    assert len(client.fine_tuning.jobs.list(limit=1000).data) == before


def test_a_misspelt_key_is_told_the_right_one(client: OpenAI, file_id: str) -> None:
    with pytest.raises(openai.BadRequestError, match="training_file"):
        client.fine_tuning.jobs.create(
            model="tiny-gpt2", training_file=file_id, extra_body={"training_fil": "x"}
        )


def test_a_file_that_failed_its_check_cannot_be_trained_on(client: OpenAI) -> None:
    for rows, told in ((1, r"line 1: not JSON: [^;]*"), (30, r"line 1: not JSON: [^;]*; its `problems` .*")):
        bad = client.files.create(file=b"not json\n" * rows, purpose="fine-tune")
        with pytest.raises(openai.BadRequestError) as refused:
            client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=bad.id)
        assert isinstance(refused.value.body, dict)
        assert re.fullmatch(f"{bad.id} cannot be used: {told}", refused.value.body["message"])
        assert refused.value.code == "invalid_training_file"


def test_one_idempotency_key_is_one_job_however_many_ask_at_once(api: Api, file_id: str) -> None:
    body = {"model": "tiny-gpt2", "training_file": file_id}
    found: list[str] = []

    def ask() -> None:
        with api.http() as http:
            answer = http.post("/v1/fine_tuning/jobs", json=body, headers={"idempotency-key": "one"})
            found.append(answer.json()["id"])

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1
    with api.http() as http:
        other = http.post(
            "/v1/fine_tuning/jobs", json={**body, "seed": 7}, headers={"idempotency-key": "one"}
        )
    assert other.status_code == 400
    assert other.json()["error"]["code"] == "idempotency_conflict"


def test_cancel_pause_and_resume_of_a_queued_job(client: OpenAI, make: Make) -> None:
    job = make()
    jobs = client.fine_tuning.jobs
    assert str(jobs.pause(job.id).status) == "paused"
    with pytest.raises(openai.BadRequestError):
        jobs.pause(job.id)
    assert jobs.resume(job.id).status == "queued"
    with pytest.raises(openai.BadRequestError):
        jobs.resume(job.id)
    cancelled = jobs.cancel(job.id)
    assert (cancelled.status, cancelled.error) == ("cancelled", None)
    assert cancelled.finished_at is not None
    for verb in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError, match="cancelled"):
            verb(job.id)
    codes = [event.data["code"] for event in jobs.list_events(job.id)]  # type: ignore[index]
    assert codes == ["cancelled", "resumed", "paused", "created"]


def test_lists_are_newest_first_and_page_without_a_loss(client: OpenAI, make: Make) -> None:
    made = [make().id for _ in range(5)]
    seen = [job.id for job in client.fine_tuning.jobs.list(limit=2)]
    assert seen[:5] == made[::-1]
    assert len(seen) == len(set(seen))


def test_jobs_are_found_by_their_metadata(client: OpenAI, make: Make) -> None:
    wanted = make(metadata={"run": "a", "by": "me"})
    make(metadata={"run": "b"})
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"run": "a"})] == [wanted.id]


def test_a_strangers_job_does_not_exist(api: Api, make: Make, file_id: str) -> None:
    job = make()
    with api.client(api.stranger_key) as stranger:
        jobs = stranger.fine_tuning.jobs
        assert jobs.list().data == []
        for call in (
            jobs.retrieve,
            jobs.cancel,
            jobs.pause,
            jobs.resume,
            jobs.list_events,
            jobs.checkpoints.list,
        ):
            with pytest.raises(openai.NotFoundError):
                call(job.id)
        with pytest.raises(openai.BadRequestError):
            jobs.create(model="tiny-gpt2", training_file=file_id)


def test_a_file_that_a_job_needs_is_not_deleted(client: OpenAI, make: Make, file_id: str) -> None:
    job = make()
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.delete(file_id)
    assert refused.value.code == "file_in_use"
    client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(file_id).deleted


def test_without_a_key_nothing_answers_but_health(api: Api) -> None:
    with httpx2.Client(base_url=api.url) as anybody:
        assert anybody.get("/healthz").json() == {"status": "ok"}
        assert anybody.get("/readyz").json() == {"status": "ok"}
        for path in ("/v1/files", "/v1/fine_tuning/jobs", "/v1/models"):
            answer = anybody.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "missing_api_key"
    for key in ("nonsense", api.key[:-1] + "x", api.key.replace("ft_", "ft-")):
        with api.client(key) as wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()


def test_every_failure_has_openais_shape_and_a_request_id(http: httpx2.Client) -> None:
    for answer, status in (
        (http.get("/v1/nothing"), 404),
        (http.put("/v1/files"), 405),
        (http.post("/v1/fine_tuning/jobs", content=b"{"), 400),
        (http.post("/v1/fine_tuning/jobs", json=[]), 400),
        (http.post("/v1/fine_tuning/jobs", json={}), 400),
        (http.post("/v1/fine_tuning/jobs", content=rb'{"model": "\ud800", "training_file": "x"}'), 400),
        (http.get("/v1/fine_tuning/jobs?limit=0"), 400),
        (http.get("/v1/fine_tuning/jobs/%00"), 400),
        (http.get("/v1/files?after=%00"), 400),
        (http.get("/v1/models/%00"), 400),
    ):
        assert answer.status_code == status, answer.text
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers["x-request-id"].startswith("req_")


def test_a_body_beyond_the_limit_is_refused_however_it_is_sent(http: httpx2.Client) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"model": "'
        for _ in range(20):
            yield b"x" * 1024 * 1024

    told = http.post("/v1/fine_tuning/jobs", content=b"x" * (17 * 1024 * 1024))
    untold = http.post("/v1/fine_tuning/jobs", content=endless())
    for answer in (told, untold):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
    packed = http.post("/v1/fine_tuning/jobs", content=b"x", headers={"content-encoding": "gzip"})
    assert packed.status_code == 415


def test_models_lists_the_built_in_one_and_the_hub_names(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert {"tiny-gpt2", "gpt2"} <= set(names)
    assert client.models.retrieve("tiny-gpt2").created > 0
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError):
        client.models.delete("tiny-gpt2")
