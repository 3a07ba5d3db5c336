"""A worker that reports what it is told to, without a trainer: its rows are written by the real code."""

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

from app.database import WorkerDatabase
from app.folder import Folder
from app.lifecycle import claims
from app.settings import Settings
from worker import publish
from worker.publish import Published
from worker.rows import Rows
from worker.training import manifest
from worker.training.events import Evaluated, Event, Prepared, Saved, Step

LEASE = timedelta(minutes=5)


class Reporter:
    """Holds one job's claim."""

    def __init__(self, settings: Settings, database: WorkerDatabase, job_id: str) -> None:
        self.settings, self.database, self.job_id = settings, database, job_id
        with database.transaction() as session:
            held = claims.claim(session, job_id, "worker", LEASE)
        assert held is not None
        self.held, self._rows = held, Rows(settings, held)
        self.model_name = f"ft:tiny-gpt2:finetuned::{job_id[-8:]}"
        self._rows.model_name, self._rows.keep = self.model_name, 2

    def say(self, *said: Event) -> None:
        with self.database.transaction() as session:
            assert self._rows.write(session, [self._rows.hear(event) for event in said])

    def prepare(self, total_steps: int = 10) -> None:
        recipe = {"num_epochs": 3, "total_train_batch_size": 8, "learning_rate_multiplier": 1}
        self.say(Prepared(8, 100, 120, 0, total_steps, 4, {}, recipe, "cpu", "fp32", 1000))

    def steps(self, *steps: int) -> None:
        self.say(*(Step(n, n / 10, 1 / n, 0.1, 1.0, 5, 5 * n, 9.0, 1, False) for n in steps))

    def evaluate(self, step: int) -> None:
        self.say(Evaluated(step, step / 10, 0.5, 1.6, 0.9, 7))

    def save(self, step: int) -> None:
        metrics = {"train_loss": 0.5, "full_valid_loss": 0.6, "full_valid_mean_token_accuracy": 0.7}
        self.say(Saved(step, "/nowhere", "00", 1, metrics, False, False))

    def fail(self) -> None:
        with self.database.transaction() as session:
            assert claims.fail(session, self.held, claims.JobError("bad", "It went wrong.", "model"))

    def succeed(self, files: Mapping[str, bytes] = MappingProxyType({"config.json": b"{}"})) -> None:
        """With a model of these files."""
        store = Folder(self.settings.storage_folder)
        key = f"models/{self.job_id}-e{self.held.epoch}"
        folder = store.path(key)
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        manifest.seal(folder)
        model = Published(key, store.read_manifest(key), 2)
        with self.database.transaction() as session:
            given = (self.held, self.model_name, "tiny-gpt2", self.settings.organization, model, 500)
            assert publish.announce(session, store, *given)
