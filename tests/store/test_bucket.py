"""What only a bucket can do or suffer: keys, other machines, damage, absence, signed links."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from structlog.testing import CapturingLogger

from app import bucket, litter
from app.settings import Settings
from app.storage import MANIFEST, Damaged, StoreAway, StoreRefused, open_store
from tests.store.bucket_server import BUCKET, KEY_ID, SECRET, BucketServer
from tests.store.conftest import NewSettings
from tests.store.test_contract import LARGE, sealed, write

FAST: Any = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=2),
    "backoff": {
        "init_backoff": timedelta(milliseconds=20),
        "max_backoff": timedelta(milliseconds=50),
        "base": 2,
    },
}


def object_path(server: BucketServer, settings: Settings, key: str) -> Path:
    return server.folder / (settings.store or "").removeprefix("s3://") / key


@pytest.mark.parametrize(
    ("wrong", "setting"),
    [
        ({"store_secret": "wrong"}, "FINETUNED_STORE_SECRET"),
        ({"store_key_id": "AKIAUNKNOWN"}, "FINETUNED_STORE_KEY_ID"),
        ({"store": "s3://nowhere/x"}, "FINETUNED_STORE: there is no bucket 'nowhere'"),
    ],
)
@pytest.mark.parametrize("writes", [True, False])
def test_what_is_set_wrong_is_named(
    bucket_settings: NewSettings, wrong: dict[str, str], setting: str, writes: bool
) -> None:
    settings = bucket_settings(**wrong)
    with pytest.raises(StoreRefused, match=setting) as told:
        open_store(settings).probe(writes)
    assert SECRET not in str(told.value)
    assert "wrong" not in str(told.value)


def test_a_key_is_read_from_a_file_and_half_a_key_is_refused(
    bucket_settings: NewSettings, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    file.write_text(f"[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n")
    none = {"store_key_id": None, "store_secret": None}
    open_store(bucket_settings(**none, store_credentials=file)).probe()
    file.write_text("[default]\naws_access_key_id = x\n")
    with pytest.raises(StoreRefused, match="FINETUNED_STORE_CREDENTIALS"):
        open_store(bucket_settings(**none, store_credentials=file))
    with pytest.raises(ValueError, match="belong together"):
        bucket_settings(store_secret=None)


def test_a_server_that_is_away_for_a_moment_is_waited_for(
    server: BucketServer, bucket_settings: NewSettings
) -> None:
    store = open_store(bucket_settings())
    server.stop()
    back = threading.Timer(0.5, server.start)
    back.start()
    write(store, "files/a", LARGE)
    back.join()
    assert b"".join(store.read("files/a")) == LARGE


def test_one_that_stays_away_is_told_and_leaves_nothing(
    server: BucketServer, bucket_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket.Bucket._client, "__defaults__", (FAST, bucket.CLIENT))
    settings = bucket_settings()
    store = open_store(settings)
    before = server.objects()
    server.stop()
    try:
        with pytest.raises(StoreAway):
            write(store, "files/a", b"x")
        for ask in (store.has, store.get, store.delete, store.names, store.age):
            with pytest.raises(StoreAway):
                ask("files/a")
        assert isinstance(store, bucket.Bucket)
        assert not store.answers()
    finally:
        server.start()
    assert server.objects() == before
    assert [path for path in settings.home.rglob("*") if path.is_file()] == []
    assert store.answers()


def test_keys_are_the_relative_paths_of_the_folder(
    server: BucketServer, bucket_settings: NewSettings, tmp_path: Path
) -> None:
    """What a folder holds, copied by any tool below the prefix, is the same store."""
    settings = bucket_settings()
    folder = Settings(home=tmp_path / "before")
    sealed(open_store(folder).scratch("models/job-e1"), config_json=b"{}")
    target = server.folder / (settings.store or "").removeprefix("s3://")
    target.parent.mkdir(exist_ok=True)
    folder.storage_folder.rename(target)
    with open_store(settings).hold_folder("models/job-e1") as found:
        assert (found / "config.json").read_bytes() == b"{}"


def test_a_copy_on_another_machine_is_checked(server: BucketServer, bucket_settings: NewSettings) -> None:
    """A byte flipped in the bucket is Damaged, and no copy of it stays."""
    settings = bucket_settings()
    store = open_store(settings)
    store.adopt(sealed(store.scratch("jobs/j/e1/model"), config_json=b"{}", weights=b"w" * 100), "models/m")
    digest = write(store, "files/a", b"hello")
    for key in ("models/m/weights", "files/a"):
        path = object_path(server, settings, key)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    elsewhere = bucket_settings()
    other = open_store(elsewhere)
    with pytest.raises(Damaged), other.hold_folder("models/m"):
        pass
    with pytest.raises(Damaged), other.hold("files/a", digest):
        pass
    assert [path for path in elsewhere.home.rglob("*") if path.is_file()] == []


def test_a_folder_without_its_manifest_is_none(server: BucketServer, bucket_settings: NewSettings) -> None:
    settings = bucket_settings()
    store = open_store(settings)
    store.adopt(sealed(store.scratch("jobs/j/e1/model"), config_json=b"{}"), "models/m")
    object_path(server, settings, f"models/m/{MANIFEST}").unlink()
    with pytest.raises(FileNotFoundError), open_store(bucket_settings()).hold_folder("models/m"):
        pass


def test_a_folder_that_cannot_be_sent_whole_gets_no_manifest(
    server: BucketServer, bucket_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor when it is another one's turn to stand under the same key: the old manifest is gone before."""
    settings = bucket_settings()
    store = open_store(settings)
    assert isinstance(store, bucket.Bucket)
    store.adopt(sealed(store.scratch("one"), config_json=b"1", weights=b"1"), "models/m")
    send = store.send

    def fail(path: Path, key: str) -> None:
        if key.endswith("weights"):
            raise StoreAway("gone")
        send(path, key)

    monkeypatch.setattr(store, "send", fail)
    with pytest.raises(StoreAway):
        store.adopt(sealed(store.scratch("two"), config_json=b"2", weights=b"2"), "models/m")
    with pytest.raises(FileNotFoundError):
        store.read_manifest("models/m")
    monkeypatch.undo()
    store.adopt(store.scratch("two"), "models/m")
    with open_store(bucket_settings()).hold_folder("models/m") as folder:
        assert (folder / "weights").read_bytes() == b"2"


def test_a_manifest_that_names_files_elsewhere_fetches_none(
    bucket_settings: NewSettings, tmp_path: Path
) -> None:
    store = open_store(bucket_settings())
    empty = hashlib.sha256(b"").hexdigest()
    for name in ("../outside", "/etc/outside", "a/../../outside"):
        text = json.dumps({"files": {name: {"sha256": empty, "bytes": 0}}})
        store.put(f"models/m/{MANIFEST}", text.encode())
        with pytest.raises(ValueError, match="not a key"), store.hold_folder("models/m"):
            pass
    assert not list(tmp_path.rglob("outside"))


def test_what_no_row_knows_goes_from_the_bucket_too(
    bucket_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the age that the bucket tells; what is known, and what is young, stays."""
    store = open_store(bucket_settings())
    for key in ("files/a", "files/b", "jobs/j/e1/checkpoints/step-1/w", "jobs/j/e1/checkpoints/step-2/w"):
        store.put(key, b"x")
    known = {
        "files": litter.Known(frozenset({"files/a"})),
        "jobs": litter.Known(frozenset({"jobs/j/e1/checkpoints/step-2"}), {"j": (True, 2)}),
    }

    def tidy() -> list[str]:
        return [key for part in litter.parts(store) for key in litter.remove(store, part, known[part.kind])]

    assert tidy() == []
    monkeypatch.setattr(litter, "ABANDONED_AFTER", -60.0)
    monkeypatch.setattr(litter, "SETTLED_AFTER", -60.0)
    assert tidy() == ["files/b", "jobs/j/e1/checkpoints/step-1"]
    assert store.names("files") == ["a"]
    assert store.names("jobs/j/e1/checkpoints") == ["step-2"]


def test_a_link_is_signed_and_ends(server: BucketServer, bucket_settings: NewSettings) -> None:
    store = open_store(bucket_settings(store_public_endpoint=server.url))
    write(store, "files/a", LARGE)
    link = store.link("files/a")
    assert link is not None
    found = httpx2.get(link, headers={"range": "bytes=10-19"})
    assert (found.status_code, found.content) == (206, LARGE[10:20])
    assert httpx2.get(link.replace("files/a", "files/b")).status_code == 403
    assert "X-Amz-Expires=300" in link
    assert SECRET not in link
    assert open_store(bucket_settings()).link("files/a") is None


def test_memory_does_not_grow_with_the_bytes(bucket_settings: NewSettings) -> None:
    """160 MB written, sent and fetched: the peak grows by less than half of that."""
    program = """
import os, re
from pathlib import Path
from app.settings import Settings
from app.storage import open_store
store = open_store(Settings())
store.probe()
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1000
before = peak()
with store.upload("files/large") as upload:
    for _ in range(160):
        upload.write(os.urandom(1_000_000))
    upload.commit()
store._copies.forget("files/large")
with store.hold("files/large", upload.sha256) as path:
    assert path.stat().st_size == 160_000_000
print("grown", peak() - before)
"""
    settings = bucket_settings()
    environment = {
        "FINETUNED_HOME": str(settings.home),
        "FINETUNED_STORE": str(settings.store),
        "FINETUNED_STORE_ENDPOINT": str(settings.store_endpoint),
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    grown = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **environment}, capture_output=True, check=True
    )
    assert int(grown.stdout.split()[-1]) < 80


def test_a_fault_is_logged_without_the_key(
    bucket_settings: NewSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CapturingLogger()
    monkeypatch.setattr(bucket, "log", log)
    with pytest.raises(StoreRefused):
        open_store(bucket_settings(store_key_id="AKIAUNKNOWN")).get("files/a")
    said = str(log.calls)
    assert "InvalidAccessKeyId" in said
    assert SECRET not in said


def test_the_bucket_of_the_tests_checks_signatures(server: BucketServer) -> None:
    """Or all of the above would prove little."""
    assert httpx2.get(f"{server.url}/{BUCKET}").status_code == 403
