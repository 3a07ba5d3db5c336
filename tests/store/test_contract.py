"""What every store promises, asked of both."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.storage import MANIFEST, Store
from worker.training import manifest

LARGE = os.urandom(17_000_003)  # three pieces of a bucket, the last one short


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(store: Store, key: str, data: bytes) -> str:
    with store.upload(key) as upload:
        for at in range(0, len(data), 1_000_000):
            upload.write(data[at : at + 1_000_000])
        upload.commit()
    return upload.sha256


def sealed(folder: Path, **files: bytes) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    manifest.seal(folder)
    return folder


def test_an_object_is_read_as_it_was_written(store: Store) -> None:
    assert write(store, "files/a", LARGE) == sha256(LARGE)
    assert store.has("files/a")
    assert b"".join(store.read("files/a")) == LARGE
    assert store.get("files/a") == LARGE


def test_a_range_of_it_is_what_lies_there(store: Store) -> None:
    write(store, "files/a", LARGE)
    for start, length in ((0, 1), (8_388_607, 2), (16_999_999, None), (5, 0), (17_000_000, 100), (7, None)):
        end = None if length is None else start + length
        assert b"".join(store.read("files/a", start, length)) == LARGE[start:end]


def test_an_object_without_a_byte_is_one(store: Store) -> None:
    write(store, "files/empty", b"")
    assert store.has("files/empty")
    assert list(store.read("files/empty")) == []
    with store.hold("files/empty", sha256(b"")) as path:
        assert path.read_bytes() == b""


def test_what_is_not_committed_was_never_there(store: Store) -> None:
    with store.upload("files/a") as upload:
        upload.write(b"half")
    with pytest.raises(TypeError), store.upload("files/b") as upload:
        upload.write("no bytes")  # type: ignore[arg-type]
    assert not store.has("files/a")
    assert store.names("files") == []
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_what_is_not_there_is_told_as_that(store: Store) -> None:
    assert not store.has("files/none")
    for ask in (store.get, store.read_manifest, lambda key: next(store.read(key))):
        with pytest.raises(FileNotFoundError):
            ask("files/none")
    with pytest.raises(FileNotFoundError), store.hold("files/none", sha256(b"")):
        pass
    with pytest.raises(FileNotFoundError), store.hold_folder("models/none"):
        pass
    assert store.names("none") == []
    assert store.age("files/none") == 0
    store.delete("files/none")


@pytest.mark.parametrize("key", ["../x", "files/../../x", "..", "files/a/../../../x"])
def test_no_key_leads_out_of_the_store(store: Store, key: str) -> None:
    for ask in (store.check, store.get, store.has, store.delete, store.scratch, store.names, store.upload):
        with pytest.raises(ValueError, match="not a key"):
            ask(key)


def test_a_small_object_is_put_at_once_and_again(store: Store) -> None:
    store.put("cache/a/report.json", b"one")
    store.put("cache/a/report.json", b"two")
    assert store.get("cache/a/report.json") == b"two"


def test_a_folder_is_listed_by_what_lies_directly_in_it(store: Store) -> None:
    for key in ("jobs/one/e1/a", "jobs/one/e2/b", "jobs/one-more/e1/c", "jobs/loose"):
        store.put(key, b"x")
    assert store.names("jobs") == ["loose", "one", "one-more"]
    assert store.names("jobs/one") == ["e1", "e2"]
    assert store.names("jobs/on") == []


def test_something_new_is_seconds_old(store: Store) -> None:
    store.put("jobs/one/e1/checkpoints", b"x")
    store.put("files/a", b"x")
    assert -2 < store.age("jobs/one/e1") < 60
    assert -2 < store.age("files/a") < 60


def test_a_folder_goes_whole_and_alone(store: Store) -> None:
    for key in ("models/one/a", "models/one/b/c", "models/one-more/a", "models/two"):
        store.put(key, b"x")
    store.delete("models/one")
    assert store.names("models") == ["one-more", "two"]
    store.delete("models/two")
    assert store.names("models") == ["one-more"]


def test_two_processes_that_remove_the_same_both_do(store: Store) -> None:
    """Who was told that it is gone forgets the key: then nothing may be left of it."""
    for _ in range(5):
        for number in range(100):
            store.put(f"models/one/{number}", b"x")
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(store.delete, ["models/one"] * 3))
        assert store.names("models") == []


def test_an_adopted_folder_is_there_with_its_manifest(store: Store, tmp_path: Path) -> None:
    made = sealed(store.scratch("jobs/j/e1/model"), config_json=b"{}", sub__weights=LARGE)
    told = json.loads((made / MANIFEST).read_text())
    store.adopt(made, "models/m")
    assert store.read_manifest("models/m") == told
    assert b"".join(store.read("models/m/sub/weights")) == LARGE
    with store.hold_folder("models/m") as folder:
        assert folder.name == "m"
        assert manifest.verify(folder) == sha256(store.get(f"models/m/{MANIFEST}"))


def test_a_held_file_is_the_object(store: Store) -> None:
    digest = write(store, "files/a", LARGE)
    with store.hold("files/a", digest) as path:
        assert path.read_bytes() == LARGE
    assert store.fetch("files/a", digest).read_bytes() == LARGE


def test_the_store_answers(store: Store) -> None:
    store.probe()
    store.probe(write=False)
    store.sweep()
