"""A backup holds one moment, whole, and becomes a service again; what is damaged or in the way is refused.

A service that trains meanwhile and goes on elsewhere, in another bucket: tests/store/test_flow.py.
"""

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import text

from app.backup import objects, snapshot
from app.backup.backup import backup, served
from app.backup.restore import restore
from app.backup.snapshot import BackupError
from app.database import WorkerDatabase, revisions
from app.embedded.up import only_one
from app.settings import Settings
from app.storage import Store
from tests.app.conftest import Api, serving
from tests.flow.stack import wait_for
from tests.operations.test_metrics import make_job
from tests.stand_ins.reporter import Reporter

DATA = b'{"text": "Stir the soup."}\n' * 24


def quiet(_: str) -> None: ...


@pytest.fixture(scope="module")
def small(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a file, a model and two jobs, made from a database of DATABASE_URL."""
    database = WorkerDatabase(api.settings)
    with api.client() as client:
        worker = Reporter(api.settings, database, make_job(client))
        worker.succeed()
        make_job(client)
        url = "https://hooks.example/"
        client.webhooks.create(name="w", url=url, event_types=["fine_tuning.job.failed"])
    database.close()
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
    assert (new.home / "webhook_key").read_text() == (api.settings.home / "webhook_key").read_text()
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


@pytest.mark.usefixtures("small")
def test_where_the_key_of_the_webhooks_is_not_at_hand_it_is_said(api: Api, tmp_path: Path) -> None:
    """As on a machine that has the database and the bucket, but no API."""
    (tmp_path / "home").mkdir()
    said: list[str] = []
    backup(api.settings.model_copy(update={"home": tmp_path / "home"}), tmp_path / "copy", said.append)
    assert [line for line in said if "no webhook_key" in line]
    assert [line for line in said if line.startswith("Not there")], "nor is the folder store"


def test_an_embedded_home_is_backed_up_at_rest_and_while_it_is_up(small: Path, tmp_path: Path) -> None:
    home = Settings(home=tmp_path / "home")
    restore(home, small, quiet)
    at_rest, while_up = tmp_path / "at-rest", tmp_path / "while-up"
    backup(home, at_rest, quiet)
    with only_one(home.home):
        with pytest.raises(BackupError, match="just starting"):
            backup(home, while_up, quiet)
        with served(home):
            backup(home, while_up, quiet)
    first, *others = [
        json.loads((folder / "backup.json").read_text()) for folder in (small, at_rest, while_up)
    ]
    for facts in others:
        assert (facts["objects"], facts["schema"]) == (first["objects"], first["schema"])
    for path in while_up.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_home_that_is_a_volume_is_filled(
    small: Path, new: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container. That it is a mount is made up: not everybody may mount."""
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == new.home)
    (new.home / "lost+found").mkdir(parents=True)
    (small / "home" / "key").rename(small / "key")
    (small / "home" / "key").mkdir()
    with pytest.raises(IsADirectoryError):
        restore(new, small, quiet)
    (small / "home" / "key").rmdir()
    (small / "key").rename(small / "home" / "key")
    assert [path.name for path in new.home.iterdir()] == ["lost+found"], "nothing is left of what failed"
    restore(new, small, quiet)
    assert sorted(path.name for path in new.home.iterdir()) == ["key", "lost+found", "storage", "webhook_key"]


KILLED = """
import os, sys
from pathlib import Path
from app.backup import objects, restore
from app.settings import Settings
home = Path(sys.argv[1])
if sys.argv[3] == "volume":
    os.path.ismount = lambda path: Path(path) == home
objects.copy_in = lambda *_: os.kill(os.getpid(), 9)
restore.restore(Settings(home=home), Path(sys.argv[2]), print)
"""


@pytest.mark.parametrize("kind", ["volume", "folder"])
def test_what_a_killed_restore_left_is_in_nobodys_way_and_goes(
    small: Path, new: Settings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Half a home, with all secrets in it, and in a volume in the way of every other restore."""
    if kind == "volume":
        monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == new.home)
        new.home.mkdir()
    command = [sys.executable, "-c", KILLED, str(new.home), str(small), kind]
    assert subprocess.run(command, check=False).returncode == -9
    where = new.home if kind == "volume" else new.home.parent
    [left] = where.glob(".new-restoring-*")
    (left / "held").touch()
    handle = os.open(left, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as that of a restore at work is
    if kind == "volume":
        with pytest.raises(BackupError, match="is not empty"):
            restore(new, small, quiet)
        assert (left / "held").exists()
    os.close(handle)
    restore(new, small, quiet)
    assert not left.exists()
    assert (new.home / "storage").is_dir()


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
        (lambda: (small / "backup.json").write_text('{"format": 1'), "cannot be read"),
        (
            lambda: (small / "backup.json").write_text(
                json.dumps({**facts, "objects": {"../key": facts["objects"][key]}})
            ),
            "leads out of it",
        ),
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
    with pytest.raises(BackupError, match=r"database.dump is not what was backed up"):
        restore(new, small, quiet)
    # As the first release made them, without that hash.
    (small / "backup.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "dump_sha256"}))
    with pytest.raises(BackupError, match="pg_restore failed"):
        restore(new, small, quiet)
    (small / "backup.json").write_text(json.dumps(facts))
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


def test_a_part_that_goes_meanwhile_and_a_planted_link_spoil_no_backup(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part goes after it was listed and before it is read, as one that is refused at that moment."""
    walk = objects.walk

    def slow(store: Store, key: str) -> Iterator[str]:
        for inner in walk(store, key):
            if inner.startswith("uploads/"):
                store.delete(inner)
            yield inner

    with api.client() as client:
        purpose: Any = "fine-tune"
        upload = client.uploads.create(bytes=4, filename="x.txt", mime_type="text/plain", purpose=purpose)
        client.uploads.parts.create(upload.id, data=b"aaaa")
        database = WorkerDatabase(api.settings)
        worker = Reporter(api.settings, database, make_job(client))
    worker.save(5)
    worker.fail()
    database.close()
    key = f"jobs/{worker.job_id}/e1/checkpoints/step-5"
    saved = api.settings.storage_folder / key
    saved.mkdir(parents=True)
    (saved / "weights").write_bytes(b"w")
    (tmp_path / "secret").write_bytes(b"s")
    (saved / "planted").symlink_to(tmp_path / "secret")
    monkeypatch.setattr(objects, "walk", slow)
    backup(api.settings, tmp_path / "copy", quiet)
    facts = json.loads((tmp_path / "copy" / "backup.json").read_text())
    assert [name for name in facts["objects"] if name.startswith(("uploads", key))] == [f"{key}/weights"]
    assert not list((tmp_path / "copy").rglob("part_*"))


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
