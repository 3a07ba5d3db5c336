"""Backed up while a job trains, restored and started elsewhere: all is there and the job goes on."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from openai import OpenAI
from sqlalchemy import text

from app.backup import snapshot
from app.backup.backup import backup
from app.backup.restore import restore
from app.backup.snapshot import BackupError
from app.database import WorkerDatabase, revisions
from app.settings import Settings
from tests.app.conftest import Api, serving
from tests.flow.stack import QUICK, Stack, wait_for, wait_for_end
from tests.operations.test_metrics import make_job
from tests.stand_ins.reporter import Reporter

DATA = b'{"text": "Stir the soup."}\n' * 24


def quiet(_: str) -> None: ...


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def listed(client: OpenAI, running: str) -> dict[str, object]:
    return {
        "files": sorted((file.id, file.bytes) for file in client.files.list()),
        "models": sorted(model.id for model in client.models.list()),
        "jobs": sorted(job.id for job in client.fine_tuning.jobs.list()),
        "first": [c.id for c in client.fine_tuning.jobs.checkpoints.list(running)],
    }


@pytest.mark.timeout(400)
def test_a_service_is_backed_up_while_it_trains_and_goes_on_elsewhere(tmp_path: Path) -> None:
    before, after = Stack(tmp_path / "before", QUICK), Stack(tmp_path / "after", QUICK)
    copy = tmp_path / "copy"
    before.start()
    try:
        with before.client() as client:
            file = client.files.create(file=("a.jsonl", DATA), purpose="fine-tune")

            def job(steps: int, save: int) -> str:
                recipe = {"max_steps": steps, "save_steps": save, "total_train_batch_size": 4}
                more = {"hyperparameters": recipe}
                given = {"model": "tiny-gpt2", "training_file": file.id}
                return client.fine_tuning.jobs.create(**given, extra_body=more).id  # type: ignore[arg-type]

            done = wait_for_end(client, job(4, 2))
            assert done.fine_tuned_model is not None
            ask = {"model": done.fine_tuned_model, "prompt": "Stir", "max_tokens": 8, "temperature": 0}
            answer = client.completions.create(**ask).choices[0].text  # type: ignore[call-overload]
            long = job(100_000, 20)
            wait_for(lambda: bool(client.fine_tuning.jobs.checkpoints.list(long).data), "a checkpoint")
            made = run("backup", str(copy), "--home", str(before.home))
            assert made.returncode == 0, made.stderr
            assert client.fine_tuning.jobs.retrieve(long).status == "running", "nobody was disturbed"
            there = listed(client, done.id)
            assert json.loads((copy / "backup.json").read_text())["missing"] == []
    finally:
        before.kill()
    assert run("restore", str(copy), "--home", str(after.home)).returncode == 0
    after.start()
    try:
        with after.client() as client:
            assert after.key == before.key
            assert listed(client, done.id) == there
            assert client.files.content(file.id).read() == DATA

            def resumed() -> list[int]:
                events = after.get(f"/v1/fine_tuning/jobs/{long}/events", params={"limit": 100}).json()[
                    "data"
                ]
                return [event["data"]["step"] for event in events if event["data"]["code"] == "resumed"]

            wait_for(lambda: bool(resumed()), "the job goes on")
            assert resumed()[0] >= 20
            client.fine_tuning.jobs.cancel(long)
            again = client.completions.create(**ask).choices[0].text  # type: ignore[call-overload]
            assert again == answer
            assert run("backup", str(tmp_path / "second"), "--home", str(after.home)).returncode == 0
    finally:
        after.kill()


@pytest.fixture(scope="module")
def small(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a file, a model and two jobs, made from a database of DATABASE_URL."""
    database = WorkerDatabase(api.settings)
    with api.client() as client:
        worker = Reporter(api.settings, database, make_job(client))
        worker.succeed()
        make_job(client)
    database.close()
    (api.settings.home / "webhook_key").write_text("secret")
    folder = tmp_path_factory.mktemp("backups") / "small"
    backup(api.settings, folder, quiet)
    return folder


@pytest.fixture
def new(empty_database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "new", database_url=empty_database_url, redis_url=redis_url)


def test_a_database_of_ones_own_is_restored_into_an_empty_one_only(
    small: Path, new: Settings, api: Api
) -> None:
    said: list[str] = []
    assert not new.storage_folder.exists(), "asked for before, it must not be remembered for another home"
    restore(new, small, said.append)
    assert (new.storage_folder / "files").is_dir()
    assert (new.home / "key").read_text() == (api.settings.home / "key").read_text()
    assert (new.home / "webhook_key").read_text() == "secret"
    with serving(new) as url, api.client() as old, OpenAI(base_url=f"{url}/v1", api_key=api.key) as client:
        assert {job.id for job in client.fine_tuning.jobs.list()} == {
            job.id for job in old.fine_tuning.jobs.list()
        }
        (file, *_) = client.files.list().data
        assert client.files.content(file.id).read() == old.files.content(file.id).read()
    elsewhere = new.model_copy(update={"home": new.home.with_name("elsewhere")})
    with pytest.raises(BackupError, match="database of DATABASE_URL is not empty"):
        restore(elsewhere, small, quiet)
    assert list(new.home.parent.iterdir()) == [new.home], "and nothing is left of it"
    with pytest.raises(BackupError, match="is not empty: restore into a new home"):
        restore(new, small, quiet)
    with pytest.raises(BackupError, match="is not empty: a backup is made into a new folder"):
        backup(api.settings, small, quiet)


def test_a_backup_that_is_damaged_or_unfinished_is_not_restored(
    small: Path, new: Settings, tmp_path: Path
) -> None:
    facts = json.loads((small / "backup.json").read_text())
    key = next(iter(facts["objects"]))
    kept = (small / "storage" / key).read_bytes()
    for breach, word in (
        (lambda: (small / "storage" / key).write_bytes(kept + b"x"), "is not what was backed up"),
        (lambda: (small / "storage" / key).write_bytes(kept[:-1] + b"?"), "is not what was backed up"),
        (lambda: (small / "storage" / key).unlink(), "is missing"),
        (
            lambda: (small / "backup.json").write_text(json.dumps({**facts, "schema": "9999"})),
            "newer release",
        ),
        (lambda: (small / "backup.json").write_text(json.dumps({**facts, "dump_bytes": 1})), "not as large"),
        (lambda: (small / "backup.json").unlink(), "not finished"),
    ):
        breach()
        with pytest.raises(BackupError, match=word):
            restore(new, small, quiet)
        assert not list(new.home.parent.iterdir()), word
        (small / "storage" / key).write_bytes(kept)
        (small / "backup.json").write_text(json.dumps(facts))
    dump = (small / "database.dump").read_bytes()
    (small / "database.dump").write_bytes(b"x" * len(dump))
    with pytest.raises(BackupError, match="pg_restore failed"):
        restore(new, small, quiet)
    (small / "database.dump").write_bytes(dump)
    assert revisions()[0] == facts["schema"]


def test_nothing_is_removed_while_a_backup_copies_and_all_of_it_after(api: Api) -> None:
    """What is deleted meanwhile was there at the backup's moment, so its bytes must be copied still."""
    with api.client() as client:
        file = client.files.create(file=("gone.jsonl", DATA), purpose="fine-tune")
        bytes_there = api.settings.storage_folder / "files" / file.id
        with snapshot.held(api.settings) as moment:
            assert f"files/{file.id}" in moment.keys
            client.files.delete(file.id)
            threading.Event().wait(2.5)  # two rounds of the loop that removes
            assert bytes_there.exists()
        wait_for(lambda: not bytes_there.exists(), "its removal")


def test_no_password_is_in_an_argument_list(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spy runs what it was given: the command line is all that is looked at."""
    seen: list[list[str]] = []
    real = subprocess.run

    def spy(command: list[str], **named: object) -> object:
        seen.append(command)
        return real(command, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", spy)
    with snapshot.held(api.settings) as moment:
        snapshot.dump(api.settings, moment, api.settings.home / "dump")
    database = WorkerDatabase(api.settings)
    password = database.engine.url.password
    with database.transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1
    database.close()
    assert password
    assert seen
    assert password not in " ".join(seen[0])
