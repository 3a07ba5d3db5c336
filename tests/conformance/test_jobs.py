"""Every call of `client.fine_tuning.jobs` and `client.models`, as contract and SDK have it."""

import csv
import io
from collections.abc import Callable
from typing import Any

import openai
import pytest
from pydantic import ValidationError

from tests.conformance.conftest import Client
from tests.stand_ins.reporter import Reporter

JOBS = "fine_tuning.jobs"
ASKED = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
Work = Callable[[str], Reporter]


def create(call: Client, file_id: str, **named: Any) -> Any:
    return call(f"{JOBS}.create", **{"model": "tiny-gpt2", "training_file": file_id, **named})


def test_a_new_job_has_every_key_and_asks_for_auto_until_it_is_known(call: Client, file_id: str) -> None:
    job = create(call, file_id, suffix="soup", metadata={"team": "a"}, seed=7)
    body = call.answers[-1].json()
    for key in (
        "error",
        "fine_tuned_model",
        "finished_at",
        "trained_tokens",
        "validation_file",
        "estimated_finish",
    ):
        assert body[key] is None, key
    assert body["result_files"] == []
    assert (job.seed, job.metadata, job.organization_id) == (7, {"team": "a"}, "finetuned")
    assert body["hyperparameters"] == {
        "n_epochs": "auto",
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
    }
    assert body["method"] == {
        "type": "supervised",
        "supervised": {"hyperparameters": body["hyperparameters"]},
    }
    assert job.queue["position"] >= 1


def test_nulls_count_as_absent(call: Client, file_id: str) -> None:
    nothing = {"suffix": None, "seed": None, "validation_file": None, "metadata": None, "integrations": None}
    assert create(call, file_id, **nothing).seed == 42


@pytest.mark.parametrize(
    "asked",
    [
        {"hyperparameters": ASKED},
        {
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": ASKED},
            }
        },
        {"extra_body": {"hyperparameters": ASKED}},
    ],
    ids=["hyperparameters", "method", "extra_body"],
)  # fmt: skip
def test_hyperparameters_are_taken_in_each_place_and_reported_in_both(
    call: Client, file_id: str, asked: dict[str, Any]
) -> None:
    job = create(call, file_id, **asked)
    for where in (job.hyperparameters, job.method.supervised.hyperparameters):
        assert (where.n_epochs, where.batch_size, where.learning_rate_multiplier) == (2, 4, 0.5)


def test_auto_is_reported_as_numbers_once_it_is_resolved(call: Client, file_id: str, work: Work) -> None:
    job = create(call, file_id)
    work(job.id).prepare()
    job = call(f"{JOBS}.retrieve", job.id)
    assert job.status == "running"
    for where in (job.hyperparameters, job.method.supervised.hyperparameters):
        assert (where.n_epochs, where.batch_size, where.learning_rate_multiplier) == (3, 8, 1)


def test_reinforcement_is_refused_by_name(call: Client, file_id: str) -> None:
    grader = {"type": "string_check", "name": "g", "input": "a", "reference": "a", "operation": "eq"}
    with pytest.raises(openai.BadRequestError) as refused:
        create(call, file_id, method={"type": "reinforcement", "reinforcement": {"grader": grader}})
    assert (refused.value.param, refused.value.code) == ("method.type", "unsupported_method")


def test_jobs_are_listed_newest_first_by_page_and_by_metadata(call: Client, file_id: str) -> None:
    mark = f"{type(call).__name__}"
    made = [create(call, file_id, metadata={"mark": mark, "n": str(n)}).id for n in range(3)]
    bare, empty = create(call, file_id).id, create(call, file_id, metadata={"mark": ""}).id
    found = [job.id for job in call.every(f"{JOBS}.list", metadata={"mark": mark}, limit=2)]
    assert found == made[::-1]
    assert [job.id for job in call(f"{JOBS}.list", metadata={"mark": mark, "n": "1"}).data] == [made[1]]
    assert empty in [job.id for job in call(f"{JOBS}.list", metadata={"mark": ""}).data]
    without = [job.id for job in call(f"{JOBS}.list", extra_query={"metadata": "null"}, limit=100).data]
    assert bare in without
    assert not {*made, empty} & set(without)
    everything = [job.id for job in call.every(f"{JOBS}.list", limit=2)]
    assert everything[:5] == [empty, bare, *made[::-1]]
    assert len(everything) == len(set(everything))


def test_pause_resume_and_cancel_move_a_job_and_answer_400_out_of_turn(call: Client, file_id: str) -> None:
    job = create(call, file_id)
    with pytest.raises(ValidationError, match="status"):
        call(f"{JOBS}.pause", job.id)  # "paused" stands in no enumeration of the SDK, strictly taken
    assert call.answers[-1].json()["status"] == "paused"
    with pytest.raises(openai.BadRequestError):
        call(f"{JOBS}.pause", job.id)
    assert call(f"{JOBS}.resume", job.id).status == "queued"
    with pytest.raises(openai.BadRequestError):
        call(f"{JOBS}.resume", job.id)
    ended = call(f"{JOBS}.cancel", job.id)
    assert (ended.status, ended.error) == ("cancelled", None)
    assert ended.finished_at >= ended.created_at
    for verb in ("cancel", "pause", "resume"):
        with pytest.raises(openai.BadRequestError) as refused:
            call(f"{JOBS}.{verb}", job.id)
        assert refused.value.code == "invalid_job_state"


def test_a_job_that_succeeds_has_model_events_checkpoints_and_results(
    call: Client, file_id: str, work: Work
) -> None:
    job = create(call, file_id)
    worker = work(job.id)
    worker.prepare()
    worker.steps(*range(1, 11))
    worker.evaluate(10)
    worker.save(5)
    worker.save(10)
    assert call(f"{JOBS}.retrieve", job.id).fine_tuned_model is None
    worker.succeed()
    job = call(f"{JOBS}.retrieve", job.id)
    assert (job.status, job.fine_tuned_model, job.trained_tokens) == ("succeeded", worker.model_name, 500)
    assert (job.error, job.estimated_finish) == (None, None)

    events = call.every(f"{JOBS}.list_events", job.id, limit=4)
    assert len({event.id for event in events}) == len(events) >= 8
    assert {event.level for event in events} <= {"info", "warn", "error"}
    assert {event.type for event in events} == {"message", "metrics"}
    measured = next(event for event in events if event.type == "metrics" and event.data["code"] == "step")
    assert measured.data["train_loss"] > 0
    call(f"{JOBS}.list_events", job.id)

    checkpoints = call(f"{JOBS}.checkpoints.list", job.id).data
    assert [checkpoint.step_number for checkpoint in checkpoints] == [10, 5]
    assert checkpoints[0].fine_tuning_job_id == job.id
    assert checkpoints[0].metrics.full_valid_loss == 0.6
    assert [c.id for c in call.every(f"{JOBS}.checkpoints.list", job.id, limit=1)] == [
        c.id for c in checkpoints
    ]
    assert call("models.retrieve", checkpoints[0].fine_tuned_model_checkpoint).created > 0

    (results,) = job.result_files
    assert call("files.retrieve", results).purpose == "fine-tune-results"
    rows = list(csv.DictReader(io.StringIO(call("files.content", results).text)))
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert float(rows[-1]["valid_loss"]) == 0.5


def test_a_job_that_fails_says_why_and_only_then_has_an_error(call: Client, file_id: str, work: Work) -> None:
    job = create(call, file_id)
    worker = work(job.id)
    assert call(f"{JOBS}.retrieve", job.id).error is None
    worker.fail()
    job = call(f"{JOBS}.retrieve", job.id)
    assert (job.status, job.result_files, job.fine_tuned_model) == ("failed", [], None)
    assert (job.error.code, job.error.message, job.error.param) == ("bad", "It went wrong.", "model")


def test_models_are_listed_retrieved_and_deleted(call: Client, file_id: str, work: Work) -> None:
    worker = work(create(call, file_id).id)
    worker.succeed()
    name = worker.model_name
    assert {"tiny-gpt2", name} <= {model.id for model in call("models.list").data}
    model = call("models.retrieve", name)
    assert (model.object, model.owned_by) == ("model", "finetuned")
    assert isinstance(model.created, int)
    deleted = call("models.delete", name)
    assert (deleted.id, deleted.object, deleted.deleted) == (name, "model", True)
    with pytest.raises(openai.NotFoundError):
        call("models.retrieve", name)


@pytest.mark.parametrize(
    "name", ["list_events", "checkpoints.list", "retrieve", "cancel", "pause", "resume"]
)  # fmt: skip
def test_an_unknown_job_is_404_to_every_call(call: Client, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        call(f"{JOBS}.{name}", "ftjob-nope")
    assert refused.value.code == "job_not_found"
