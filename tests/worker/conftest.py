"""One worker's supervisor in this process, on a real database, with trainers that die on command."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.database import WorkerDatabase
from app.folder import Folder
from app.lifecycle import wishes
from app.recipe import Recipe
from app.settings import Settings
from app.tables import Attempt, Checkpoint, Event, File, Job, Metric, Model, now
from worker import tasks
from worker.launch import Trainer, WarmTrainers
from worker.runtime import Runtime

OWNER = "me"
STAND_IN = (sys.executable, "-m", "tests.stand_ins.trainer", "--wait")


@dataclass
class Bench:
    """The worker under test and what its database says afterwards."""

    runtime: Runtime

    @property
    def session(self) -> Session:
        return Session(self.runtime.database.engine, expire_on_commit=False)

    def make_job(
        self, *acts: dict[str, Any], max_attempts: int = 3, job_id: str | None = None, **script: Any
    ) -> str:
        """A queued job whose trainer follows the script of tests/stand_ins/trainer.py."""
        with self.runtime.database.transaction() as session:
            number = len(session.scalars(select(Job.id)).all())
            job_id, file_id = job_id or f"ftjob-{number:024x}", f"file-{number:024x}"
            with self.runtime.store.upload(f"files/{file_id}") as upload:
                upload.write(json.dumps({"text": json.dumps({**script, "acts": acts})}).encode() + b"\n")
                upload.commit()
            session.add(
                File(
                    id=file_id,
                    owner=OWNER,
                    key=f"files/{file_id}",
                    bytes=1,
                    sha256="",
                    filename="f.jsonl",
                    purpose="fine-tune",
                    format="jsonl",
                    status="processed",
                    rows=1,
                )
            )
            session.flush()
            values = {
                "id": job_id,
                "owner": OWNER,
                "idempotency_key": None,
                "request_sha256": "",
                "model": "tiny-gpt2",
                "source": "builtin:tiny-gpt2",
                "training_file": file_id,
                "seed": 42,
                "method": {"type": "supervised"},
                "hyperparameters": {},
                "recipe": Recipe.from_request({}, "supervised").model_dump(mode="json"),
                "max_attempts": max_attempts,
            }
            wishes.create(session, values)
        return job_id

    def train(self, job_id: str) -> Job:
        """One message to the worker; the job's row afterwards."""
        tasks.train(self.runtime, job_id)
        return self.job(job_id)

    def begin(self, job_id: str) -> threading.Thread:
        thread = threading.Thread(target=tasks.train, args=(self.runtime, job_id))
        thread.start()
        return thread

    def until_end(self, job_id: str, messages: int = 20) -> Job:
        """Messages without regard to back-off until the job is no longer queued."""
        for _ in range(messages):
            with self.runtime.database.transaction() as session:
                session.get_one(Job, job_id).not_before = now
            job = self.train(job_id)
            if job.status != "queued":
                return job
        raise AssertionError(f"{job_id} never ended")

    def job(self, job_id: str) -> Job:
        with self.session as session:
            return session.get_one(Job, job_id)

    def rows(self, table: type[Any], job_id: str) -> list[Any]:
        order = {Event: Event.seq, Metric: Metric.step, Attempt: Attempt.epoch, Checkpoint: Checkpoint.step}
        with self.session as session:
            query = select(table).where(table.job_id == job_id)
            return list(session.scalars(query if table is Model else query.order_by(order[table])))

    def codes(self, job_id: str) -> list[str]:
        return [event.code for event in self.rows(Event, job_id)]


NewBench = Callable[..., Bench]


@pytest.fixture
def new_bench(database_url: str, tmp_path: Path) -> Iterator[NewBench]:
    """Makes workers of the test's own database; times are short unless said otherwise, but for those that a
    busy machine would use up: what is to die of them says so."""
    made: list[Bench] = []

    def create(command: tuple[str, ...] = STAND_IN, **times: Any) -> Bench:
        short = {"lease": 5, "heartbeat": 0.1, "stop_grace": 30, "stall": 60, "retry_delay": 0.01}
        settings = Settings(
            home=tmp_path, database_url=database_url, redis_url="unix:/nowhere", **short | times
        )
        runtime = Runtime(
            settings=settings,
            database=WorkerDatabase(settings),
            store=Folder(settings.storage_folder),
            trainers=WarmTrainers(lambda: Trainer(command)),
            worker=f"worker-{len(made)}",
        )
        made.append(Bench(runtime))
        return made[-1]

    yield create
    for bench in made:
        bench.runtime.trainers.close()
        bench.runtime.database.close()


@pytest.fixture
def bench(new_bench: NewBench) -> Bench:
    return new_bench()
