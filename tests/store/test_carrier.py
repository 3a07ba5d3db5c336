"""Checkpoints on their way from a worker's disk into a bucket, and what is left on that disk."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from app import bucket
from app.database import WorkerDatabase
from app.folder import Folder
from app.lifecycle.claims import Claim
from app.settings import Settings
from app.storage import Store, open_store
from tests.store.bucket_server import BucketServer
from tests.store.conftest import NewSettings
from tests.store.test_bucket import FAST
from worker import leftovers
from worker.carrier import Carrier
from worker.training import manifest
from worker.training.events import Notice, Saved

HELD = Claim(job_id="ftjob-1", worker="w", epoch=1, attempt=1)


class Heard:
    """Stands in for the recorder, whose database has no part in this: what was made known, in order."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.lost = False

    def add(self, event: Any) -> None:
        self.events.append(event)


def saved(store: Store, step: int, best: bool = False) -> Saved:
    folder = store.scratch(f"jobs/ftjob-1/e1/checkpoints/step-{step}")
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(str(step).encode())
    digest, size = manifest.seal(folder)
    return Saved(step, str(folder), digest, size, {}, best, False)


def carrier(store: Store, settings: Settings, heard: Heard) -> Carrier:
    return Carrier(store, settings, HELD, heard)  # type: ignore[arg-type]


def test_in_a_folder_it_is_known_at_once(tmp_path: Path) -> None:
    store, heard = Folder(tmp_path), Heard()
    event = saved(store, 5)
    carrier(store, Settings(home=tmp_path), heard).take(event)
    assert heard.events == [event]


def test_it_is_known_when_it_is_in_the_bucket_though_that_was_away(
    server: BucketServer, bucket_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket.Bucket._client, "__defaults__", (FAST, bucket.CLIENT))
    settings, heard = bucket_settings(), Heard()
    store = open_store(settings)
    events = [saved(store, 5, best=True), saved(store, 10), saved(store, 15)]
    carries = carrier(store, settings, heard)
    server.stop()
    for event in events:
        carries.take(event)
    time.sleep(0.3)
    assert heard.events == []
    server.start()
    carries.settle()
    assert heard.events == events
    with open_store(bucket_settings()).hold_folder("jobs/ftjob-1/e1/checkpoints/step-10") as folder:
        assert manifest.verify(folder) == events[1].manifest_sha256
    left = [step for step, _ in manifest.checkpoints(store.scratch("jobs/ftjob-1/e1/checkpoints"))]
    assert left == [5, 15], "the best, which may be published, and the newest"


def test_one_that_is_not_as_stated_is_told_and_stops_none(bucket_settings: NewSettings) -> None:
    settings, heard = bucket_settings(), Heard()
    store = open_store(settings)
    damaged, good = saved(store, 5), saved(store, 10)
    (store.scratch("jobs/ftjob-1/e1/checkpoints/step-5") / "weights").write_bytes(b"?")
    carries = carrier(store, settings, heard)
    carries.take(damaged)
    carries.take(good)
    carries.settle()
    notice, known = heard.events
    assert isinstance(notice, Notice)
    assert (notice.code, known) == ("checkpoint_not_stored", good)
    assert not store.has("jobs/ftjob-1/e1/checkpoints/step-5/manifest.json")


def test_a_lost_claim_is_waited_for_no_longer(server: BucketServer, bucket_settings: NewSettings) -> None:
    settings, heard = bucket_settings(), Heard()
    carries = carrier(open_store(settings), settings, heard)
    heard.lost = True
    carries.settle()
    carries.close()


def test_what_attempts_left_on_a_workers_disk_goes(
    server: BucketServer, bucket_settings: NewSettings, database_url: str
) -> None:
    settings = bucket_settings(database_url=database_url)
    store, database = open_store(settings), WorkerDatabase(settings)
    old, young = store.scratch("jobs/ftjob-x/e1/model"), store.scratch("jobs/ftjob-y/e1/model")
    for folder in (old, young, store.scratch("cache/file-x")):
        folder.mkdir(parents=True)
        (folder / "left").write_bytes(b"x")
    for path in (
        store.root / "jobs/ftjob-x",
        *(store.root / "jobs/ftjob-x").rglob("*"),
        *(store.root / "cache").rglob("*"),
    ):
        os.utime(path, (0, 0))
    store.put("jobs/ftjob-x/e1/checkpoints/step-1/weights", b"x")
    try:
        assert leftovers.sweep(database, store) == ["cache/file-x", "jobs/ftjob-x"]
        assert leftovers.sweep(database, Folder(store.root)) == [], "there, what lies is the store's"
    finally:
        database.close()
    assert young.is_dir()
    assert store.has("jobs/ftjob-x/e1/checkpoints/step-1/weights"), "the bucket is not ours to tidy here"
