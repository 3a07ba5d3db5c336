"""Jobs are reported to other services: by the libraries themselves, to folders and a stand-in of the hub.

W&B writes its offline run and MLflow its file store, both real. The hub's stand-in (tests/stand_ins/hub.py)
takes the push as huggingface_hub sends it: nothing may be published for a test.
"""

import queue
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app import integrations
from app.errors import InvalidRequest
from app.folder import Folder
from app.integrations import Integration
from app.tables import Event, File, Job
from tests.stand_ins import hub
from tests.worker.conftest import Bench
from worker import tensorboard
from worker.integrations import follower
from worker.integrations.sinks import Mlflow
from worker.training import events

# As preference pairs tell them, in figures that float32 has exactly.
REWARDS = {"chosen": 0.5, "rejected": -0.25, "margin": 0.75, "accuracy": 0.875}


@pytest.fixture(scope="module")
def served() -> Iterator[hub.Hub]:
    with hub.serving() as running:
        yield running


def train(
    bench: Bench, *asked: dict[str, Any], seconds: float = 60, **script: Any
) -> tuple[Job, list[Event]]:
    """A job with these integrations; what was told of those that send, once each has been told of."""
    job_id = bench.make_job(**script)
    with bench.runtime.database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(integrations=list(asked)))
    bench.train(job_id)
    sending = len([one for one in asked if one["type"] != "tensorboard"])
    deadline = time.monotonic() + 90
    told: list[Event] = []
    while len(told) < sending:
        assert time.monotonic() < deadline, [event.message for event in told]
        told = [event for event in bench.rows(Event, job_id) if event.code.startswith("integration_")]
        time.sleep(0.1)
    return bench.job(job_id), told


def test_a_job_is_reported_to_wandb_mlflow_and_the_hub(
    bench: Bench, served: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    store, runs = tmp_path / "mlflow", tmp_path / "runs"
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(runs),
        "MLFLOW_TRACKING_URI": store.as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "HF_ENDPOINT": served.url,
        "HF_TOKEN": hub.TOKEN,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    runs.mkdir()
    job, told = train(
        bench,
        {"type": "wandb", "wandb": {"project": "p", "tags": ["t"]}},
        {"type": "mlflow", "mlflow": {"experiment": "e"}},
        {"type": "hub", "hub": {"repo_id": "me/tuned", "private": True}},
        steps=20,
        rewards=REWARDS,
    )
    assert job.status == "succeeded"
    assert sorted((event.code, event.data["type"]) for event in told if event.data) == [
        ("integration_done", "hub"),
        ("integration_done", "mlflow"),
        ("integration_done", "wandb"),
    ], [event.message for event in told]

    (offline,) = runs.glob("wandb/offline-run-*")
    (log,) = offline.glob("*.wandb")
    assert job.id in log.name
    for name in ("tokens_per_second", *(f"reward_{name}" for name in REWARDS), "valid_reward_margin"):
        assert name.encode() in log.read_bytes(), name

    from mlflow import MlflowClient

    client = MlflowClient(store.as_uri())
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["finetuned_job"] == job.id
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == list(
        range(1, 21)
    )
    assert run.data.params["learning_rate"] == "auto"
    for reward, mean in REWARDS.items():
        history = client.get_metric_history(run.info.run_id, f"reward_{reward}")
        assert [(metric.step, metric.value) for metric in history] == [(n, mean) for n in range(1, 21)]
        assert run.data.metrics[f"valid_reward_{reward}"] == mean

    _, files = served.repositories["me/tuned"].find("main") or ("", {})
    assert "model.safetensors" in files
    assert "hf_canary" not in str([event.message for event in told]) + str(job.integrations)


def test_what_an_integration_cannot_do_costs_the_job_nothing(
    bench: Bench, served: hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    job, told = train(bench, {"type": "hub", "hub": {"repo_id": "me/other", "private": True}})
    assert job.status == "succeeded"
    (failed,) = told
    assert (failed.level, failed.code) == ("warn", "integration_failed")
    assert "Set HF_TOKEN with write access" in failed.message
    assert "hf_wrong" not in failed.message
    assert "me/other" not in served.repositories


def test_a_service_that_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reporter that reads nothing: it is given up, and until then nobody waits."""
    monkeypatch.setattr(follower, "COMMAND", (sys.executable, "-c", "import time; time.sleep(300)"))
    monkeypatch.setattr(follower, "PATIENCE", 0.5)
    told: queue.SimpleQueue[events.Notice] = queue.SimpleQueue()
    following = follower.Follower([], {"id": "ftjob-0"}, tmp_path / "folder", told.put)
    step = events.Step(1, 0.1, 0.5, 1e-3, 1.0, 10, 10, 9.0, 1, False)
    for _ in range(follower.MOST_WAITING + 5000):  # more than the queue and the pipe take
        following.hear(step)
    following.end("succeeded", None)
    codes = {told.get(timeout=30).code, told.get(timeout=30).code}
    assert codes == {"integration_failed", "integration_slow"}


def test_a_model_that_is_deleted_before_it_is_sent_costs_its_push_and_nothing_else(tmp_path: Path) -> None:
    told: queue.SimpleQueue[events.Notice] = queue.SimpleQueue()
    job = {"id": "ftjob-0", "name": "n", "model": "m", "recipe": {}}
    hub_asked = {"type": "hub", "hub": {"repo_id": "me/gone"}}
    following = follower.Follower([hub_asked], job, tmp_path / "folder", told.put)
    following.end("succeeded", Folder(tmp_path / "storage").hold_folder("models/gone"))
    notice = told.get(timeout=60)
    assert (notice.code, notice.data) == ("integration_failed", {"type": "hub"})
    assert "was it deleted?" in notice.message
    process = following._process
    assert process is not None
    assert process.wait(30) == 0


def test_no_reporting_process_is_left_when_something_goes_wrong_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes wrong is a fault of ours that nobody has thought of."""
    monkeypatch.setattr(follower, "COMMAND", (sys.executable, "-c", "import time; time.sleep(300)"))
    told: queue.SimpleQueue[events.Notice] = queue.SimpleQueue()
    following = follower.Follower([{"type": "hub", "no": object()}], {"id": "x"}, tmp_path / "f", told.put)
    assert "not JSON serializable" in told.get(timeout=30).message
    process = following._process
    assert process is not None
    assert process.wait(30) == -9


@pytest.mark.parametrize(
    ("kind", "offered", "told"),
    [
        ("wandb", (), "FINETUNED_INTEGRATIONS"),
        ("mlflow", ("mlflow",), "pip install 'finetuned[mlflow]'"),
        ("tensorboard", ("tensorboard",), None),
    ],
)
def test_what_is_not_offered_is_refused_with_what_to_do(
    kind: str, offered: tuple[str, ...], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrations, "find_spec", lambda _: None)
    options = {"wandb": {"project": "p"}, "mlflow": {"experiment": "e"}}
    asked = Integration.model_validate({"type": kind, kind: options.get(kind, {})})
    if told is None:
        integrations.check([asked], offered)
        return
    with pytest.raises(InvalidRequest) as refused:
        integrations.check([asked], offered)
    assert (refused.value.param, refused.value.code) == ("integrations.0.type", "unsupported_integration")
    assert told in refused.value.message


def test_a_second_one_of_a_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [Integration.model_validate({"type": "tensorboard"})] * 2
    with pytest.raises(InvalidRequest) as refused:
        integrations.check(twice, ("tensorboard",))
    assert refused.value.param == "integrations.1.type"


def test_two_jobs_may_make_the_same_experiment_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other job's is made between our look and our making: what the first look says is made up."""
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    made: list[str] = []
    real = mlflow.MlflowClient.get_experiment_by_name

    def late(self: Any, name: str) -> Any:
        if made:
            return real(self, name)
        made.append(mlflow.MlflowClient().create_experiment(name))
        return None

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", late)
    sink = Mlflow({"experiment": "new"})
    sink.begin({"id": "ftjob-1", "name": "n", "model": "m", "recipe": {}})
    assert len(mlflow.MlflowClient().search_runs(made)) == 1


def test_the_reporting_process_is_told_of_its_services_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "FINETUNED_STORE_SECRET", "FINETUNED_UPSTREAMS", "ANYTHING"):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("WANDB_API_KEY", "its own")
    told = (
        "import json, os; print(json.dumps({'type': 'wandb', 'error': str(dict(os.environ)), 'advice': ''}))"
    )
    monkeypatch.setattr(follower, "COMMAND", (sys.executable, "-c", told))
    heard: queue.SimpleQueue[events.Notice] = queue.SimpleQueue()
    follower.Follower([], {"id": "ftjob-0"}, tmp_path / "folder", heard.put)
    said = heard.get(timeout=30).message
    assert "its own" in said
    assert "canary" not in said


def test_tensorboard_gets_its_event_file_among_the_results(bench: Bench) -> None:
    job, _ = train(bench, {"type": "tensorboard"}, steps=7, rewards=REWARDS)
    assert job.integrations is not None
    (file_id,) = [one["file_id"] for one in job.integrations]
    with bench.session as session:
        row = session.get_one(File, file_id)
    assert row.filename.startswith("events.out.tfevents.")
    place = bench.runtime.store.place(row.key or "")
    assert place is not None
    first, *steps = records(place.read_bytes())
    assert b"brain.Event:2" in first
    assert len(steps) == row.rows == 7
    # Field 2 of an event, a whole number: its step.
    assert [record[10] for record in steps] == list(range(1, 8))
    assert all(b"train/loss" in record for record in steps)
    for name, value in REWARDS.items():
        told = f"reward_{name}".encode() + b"\x15" + struct.pack("<f", value)
        assert all(b"train/" + told in record for record in steps), name
        assert b"valid/" + told in steps[-1], name


def records(data: bytes) -> Iterator[bytes]:
    """As TensorFlow's record reader takes them apart; both checksums are held against their bytes."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        record = data[12 : 12 + length]
        for said, about in ((data[8:12], data[:8]), (data[12 + length : 16 + length], record)):
            value = (struct.unpack("<I", said)[0] - 0xA282EAD8) & 0xFFFFFFFF
            assert (value >> 17 | value << 15) & 0xFFFFFFFF == tensorboard.crc32c(about)
        yield record
        data = data[16 + length :]


def test_the_checksum_is_castagnolis() -> None:
    """The check value that RFC 3720 and every catalogue of CRCs give."""
    assert tensorboard.crc32c(b"123456789") == 0xE3069283
