"""The main job over a bucket alone: API, two workers and a generator, each with a home of its own.

The worker that trains is killed after its first checkpoints; the other, which has none of its files, goes on
from the newest of them, and a generator that has seen neither writes with the model.
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI
from pydantic import SecretStr
from sqlalchemy import select

from app.auth import ensure_first_key
from app.backup.backup import backup
from app.backup.restore import restore
from app.backup.snapshot import BackupError
from app.database import WorkerDatabase
from app.embedded import programs
from app.settings import Settings
from app.tables import Checkpoint, Event, Job
from tests.app.conftest import serving
from tests.flow import secrets
from tests.flow.stack import wait_for, wait_for_end
from tests.store.bucket_server import BUCKET, KEY_ID, SECRET, BucketServer
from worker.training import manifest

ROWS = "".join(
    json.dumps({"text": f"Stir the soup for {n} minutes. Serve it warm."}) + "\n" for n in range(64)
)


@dataclass
class Stack:
    """Homes by name; only the bucket and the database are common to them."""

    folder: Path
    settings: Settings
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]]
    url: str = ""

    def home(self, name: str) -> Path:
        return self.folder / name

    def start(self, name: str, command: tuple[str, ...], **more: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env={**os.environ, **self.environment, "FINETUNED_HOME": str(self.home(name)), **more},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def files(self, name: str, below: str) -> list[Path]:
        return [path for path in (self.home(name) / below).rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def stack(
    server: BucketServer, module_database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("flow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        generator = f"http://127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        "DATABASE_URL": module_database_url,
        "REDIS_URL": redis_url,
        "GENERATOR_URL": generator,
        "FINETUNED_STORE": f"s3://{BUCKET}/flow",
        "FINETUNED_STORE_ENDPOINT": server.url,
        "FINETUNED_STORE_KEY_ID": KEY_ID,
        "FINETUNED_STORE_SECRET": SECRET,
        "FINETUNED_LEASE": "4",
        "FINETUNED_LEASE_GRACE": "0.5",
        "FINETUNED_HEARTBEAT": "0.5",
        "FINETUNED_SWEEP_INTERVAL": "0.5",
        "FINETUNED_REDISPATCH": "1",
        "FINETUNED_RETRY_DELAY": "0.1",
        "FINETUNED_MIN_FREE_BYTES": "0",
        "OMP_NUM_THREADS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**environment, "FINETUNED_HOME": str(folder / "api")}.items():
            patch.setenv(name, value)
        settings = Settings()
    ensure_first_key(settings)
    stack = Stack(folder, settings, environment, {})
    for name in ("worker-a", "worker-b"):
        stack.start(name, programs.celery(settings))
    stack.start("generator", (sys.executable, "-m", "worker.generation"))
    try:
        with serving(settings) as stack.url:
            yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[OpenAI]:
    key = stack.settings.key_file.read_text().strip()
    with OpenAI(base_url=f"{stack.url}/v1", api_key=key, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def model(stack: Stack, client: OpenAI) -> str:
    """Trained by one worker, and after its death by another."""
    file = client.files.create(file=("train.jsonl", ROWS.encode()), purpose="fine-tune")
    made = client.fine_tuning.jobs.create(
        model="tiny-gpt2",
        training_file=file.id,
        extra_body={
            "hyperparameters": {
                "max_steps": 100, "num_epochs": 100, "total_train_batch_size": 8, "save_steps": 10,
                "learning_rate": 1e-3,
            }
        },
    )  # fmt: skip
    database = WorkerDatabase(stack.settings)

    def holder() -> str | None:
        with database.transaction() as session:
            saved = session.scalar(select(Checkpoint.step).where(Checkpoint.job_id == made.id).limit(1))
            return None if saved is None else session.scalar(select(Job.worker).where(Job.id == made.id))

    wait_for(lambda: holder() is not None, "the first checkpoint")
    pid = int((holder() or "").split("-")[-2])
    [killed] = [name for name, process in stack.processes.items() if process.pid == pid]
    stack.processes.pop(killed).kill()
    ended = wait_for_end(client, made.id)
    assert ended.status == "succeeded", ended.error
    with database.transaction() as session:
        events = session.scalars(select(Event).where(Event.job_id == made.id).order_by(Event.seq)).all()
        [resumed] = [event for event in events if event.code == "resumed"]
        assert int((resumed.data or {})["step"]) >= 10
        assert session.get_one(Job, made.id).epoch == 3, "claimed, taken away, claimed"
    database.close()
    assert ended.fine_tuned_model is not None
    return ended.fine_tuned_model


def test_the_bucket_alone_has_what_was_trained(stack: Stack, model: str, server: BucketServer) -> None:
    """Whole and sealed; the worker that lives has cleared what it wrote for the attempt."""
    keys = [key.removeprefix("flow/") for key in server.objects()]
    models = {key.split("/")[1] for key in keys if key.startswith("models/")}
    assert len(models) == 1
    manifest.verify(server.folder / BUCKET / "flow" / "models" / models.pop())
    assert any(key.startswith("jobs/") and "/e3/checkpoints/" in key for key in keys)
    [left] = [name for name in stack.processes if name.startswith("worker")]
    assert stack.files(left, "storage/jobs") == []
    assert stack.files("api", "storage") == []


def test_the_model_is_downloaded_by_whoever_asks_the_api(stack: Stack, client: OpenAI, model: str) -> None:
    headers = {"authorization": f"Bearer {client.api_key}"}
    with httpx2.Client(base_url=f"{stack.url}/v1", headers=headers, timeout=60) as http:
        listed = {row["path"]: row for row in http.get(f"/models/{model}/files").json()["data"]}
        whole = http.get(f"/models/{model}/files/model.safetensors")
        assert len(whole.content) == listed["model.safetensors"]["bytes"]
        part = http.get(f"/models/{model}/files/model.safetensors", headers={"range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, whole.content[100:200])
        archive = zipfile.ZipFile(io.BytesIO(http.get(f"/models/{model}/download").content))
    inside = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert inside["model.safetensors"] == whole.content
    assert set(inside) == {*listed, "manifest.json"}
    public = stack.settings.model_copy(
        update={"store_public_endpoint": stack.settings.store_endpoint, "home": stack.home("replica")}
    )
    with serving(public) as url:
        found = httpx2.get(
            f"{url}/v1/models/{model}/files/model.safetensors", headers=headers, follow_redirects=False
        )
        assert found.status_code == 307
        assert httpx2.get(found.headers["location"]).content == whole.content


def test_a_generator_with_an_empty_home_writes_with_it(stack: Stack, client: OpenAI, model: str) -> None:
    def answer() -> str:
        made = client.completions.create(model=model, prompt="Stir the soup", max_tokens=8, temperature=0)
        return str(made.choices[0].text)

    wait_for(
        lambda: httpx2.get(f"{stack.environment['GENERATOR_URL']}/health").status_code == 200, "the generator"
    )
    assert answer()
    [copy] = [path for path in stack.files("generator", "copies") if path.name == "model.safetensors"]
    manifest.verify(copy.parent)
    checkpoint = client.fine_tuning.jobs.checkpoints.list(client.fine_tuning.jobs.list().data[0].id).data[0]
    assert client.completions.create(
        model=checkpoint.fine_tuned_model_checkpoint, prompt="Stir", max_tokens=4
    )


def test_it_is_backed_up_while_it_trains_and_goes_on_in_another_bucket_and_database(
    stack: Stack, client: OpenAI, model: str, server: BucketServer, empty_database_url: str, tmp_path: Path
) -> None:
    copy, said = tmp_path / "copy", list[str]()
    file = client.fine_tuning.jobs.list().data[0].training_file
    recipe = {"max_steps": 100_000, "save_steps": 10, "total_train_batch_size": 4}
    running = client.fine_tuning.jobs.create(
        model="tiny-gpt2", training_file=file, extra_body={"hyperparameters": recipe}
    ).id
    wait_for(lambda: bool(client.fine_tuning.jobs.checkpoints.list(running).data), "a checkpoint")
    backup(stack.settings, copy, said.append)
    assert client.fine_tuning.jobs.retrieve(running).status == "running", "nobody was disturbed"
    there = listed(client, running)
    [worker] = [name for name in stack.processes if name.startswith("worker")]
    stack.processes.pop(worker).kill()

    new = stack.settings.model_copy(
        update={
            "home": stack.home("restored"),
            "database_url": SecretStr(empty_database_url),
            "store": f"s3://{BUCKET}/restored",
        }
    )
    damaged = max((copy / "storage").rglob("*.safetensors"))
    kept = damaged.read_bytes()
    damaged.write_bytes(kept[:-1] + b"?")
    with pytest.raises(BackupError, match="is not what was backed up"):
        restore(new, copy, said.append)
    assert sent(server) == [], "what was sent is taken back"
    damaged.write_bytes(kept)
    restore(new, copy, said.append)
    assert sent(server)
    assert stack.files("restored", "copies") == stack.files("restored", "storage") == [], (
        "all is in the bucket"
    )
    other = new.model_copy(update={"home": stack.home("other"), "database_url": None})
    with pytest.raises(BackupError, match="is not empty"):
        restore(other, copy, said.append)

    changed = {"DATABASE_URL": empty_database_url, "FINETUNED_STORE": f"s3://{BUCKET}/restored"}
    stack.start("worker-c", programs.celery(stack.settings), **changed)
    with serving(new) as url, OpenAI(base_url=f"{url}/v1", api_key=client.api_key, timeout=60) as again:
        assert listed(again, running) == there
        assert again.files.content(file).read() == ROWS.encode()
        headers = {"authorization": f"Bearer {client.api_key}"}
        old, new_bytes = (
            httpx2.get(f"{base}/v1/models/{model}/files/model.safetensors", headers=headers).content
            for base in (stack.url, url)
        )
        assert old == new_bytes

        def resumed() -> list[int]:
            events = again.fine_tuning.jobs.list_events(running, limit=100).data
            facts = [dict(event.data) for event in events]  # type: ignore[call-overload]
            return [fact["step"] for fact in facts if fact["code"] == "resumed"]

        wait_for(lambda: bool(resumed()), "the job goes on")
        assert resumed()[0] >= 10
        again.fine_tuning.jobs.cancel(running)
    client.fine_tuning.jobs.cancel(running)


def sent(server: BucketServer) -> list[Path]:
    """What lies below the new prefix."""
    found = (server.folder / BUCKET / "restored").rglob("*")
    return [path for path in found if path.is_file() and ".nanio-meta" not in path.parts]


def test_the_buckets_key_is_where_it_is_needed_and_nowhere_else(stack: Stack, model: str) -> None:
    """Not in any argument list or log, nor with a trainer."""
    told = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    told += [path.read_bytes() for path in stack.folder.glob("*.log")]
    for process in stack.processes.values():
        for words, environment in secrets.processes(process.pid).values():
            if "worker.training" in words:
                told.append(environment)
    assert not any(SECRET.encode() in text for text in told)


def listed(client: OpenAI, running: str) -> dict[str, object]:
    """What does not change while a job runs on, in either service."""
    jobs = client.fine_tuning.jobs
    return {
        "files": sorted((file.id, file.bytes) for file in client.files.list()),
        "models": sorted(model.id for model in client.models.list() if "ckpt" not in model.id),
        "jobs": sorted(job.id for job in jobs.list()),
        "checkpoints": sorted(
            c.id for job in jobs.list() if job.id != running for c in jobs.checkpoints.list(job.id)
        ),
    }
