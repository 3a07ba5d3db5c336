"""No name that a user chose becomes a path: nothing outside the store is read or written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.folder import Folder
from tests.app.conftest import Api
from tests.security.things import ROW, good, make_job, make_model

SECRET = "a file that nobody may read"
PARTS = [
    *("..", "../", "..\\", "%2e%2e", "%2e%2e%2f", "/", "//", "\\", ".", "~", "C:", "C:\\", "\0", "%00"),
    *("/etc/passwd", "secret.txt", "key", "storage", "files", "con", "a", "é", "\u202e", "\uff0e\uff0e"),
    *("'", '"', ";", "$(touch x)", "\r\n"),
]
NAMES = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join)


@pytest.fixture(scope="module")
def sender(api: Api) -> Iterator[httpx2.Client]:
    with api.http() as client:
        yield client


@pytest.fixture(scope="module")
def outside(api: Api) -> Path:
    """A file beside the store, which a path that escapes would meet."""
    (api.settings.home / "secret.txt").write_text(SECRET)
    (api.settings.home.parent / "secret.txt").write_text(SECRET)
    return api.settings.home


def tree(home: Path) -> dict[str, int]:
    """All that lies beside the store's own folders of files and uploads, with sizes."""
    return {
        str(path): path.stat().st_size
        for path in [*home.rglob("*"), *home.parent.glob("*")]
        if path.is_file() and not path.is_relative_to(home / "storage")
    }


@pytest.mark.parametrize("name", ["a--b/c", "a/b--c", "a/b..c", "../etc", "a/é", "a/b/c", "/a", "a/"])
def test_what_cannot_be_the_hubs_is_not_asked_for(http: httpx2.Client, name: str) -> None:
    """`a--b/c` and `a/b--c` would be one folder on this machine."""
    answer = http.post("/v1/fine_tuning/jobs", json={"model": name, "training_file": "file-0"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_found"), answer.text


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(name=NAMES)
def test_whatever_a_name_is_it_stays_a_label(sender: httpx2.Client, outside: Path, name: str) -> None:
    before = tree(outside)
    raw = name.replace("\0", "%00").replace("\r\n", "").replace('"', "%22").encode()
    form = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + raw + b'"\r\n\r\n'
        b'{"text": "x"}\r\n--b--\r\n'
    )
    upload = {"bytes": 1, "filename": name, "mime_type": "a/b", "purpose": "fine-tune"}
    answers = [
        sender.post("/v1/files", content=form, headers={"content-type": "multipart/form-data; boundary=b"}),
        sender.post("/v1/uploads", json=upload),
        sender.post("/v1/fine_tuning/jobs", json={"model": name, "training_file": name}),
        sender.post("/v1/completions", json={"model": name, "prompt": "x"}),
        *(sender.get(f"/v1/{path}") for path in paths(name)),
    ]
    for answer in answers:
        assert answer.status_code < 500, (name, answer.text)
        assert SECRET not in answer.text
        assert "root:" not in answer.text
    assert tree(outside) == before
    names = [path.name for path in (outside / "storage").rglob("*") if path.is_file()]
    assert all(one.startswith(("file-", "part_", ".")) for one in names)


def paths(name: str) -> list[str]:
    """The name as it is, as far as a URL may hold it, and encoded."""
    import urllib.parse

    encoded = urllib.parse.quote(name, safe="")
    folders = ("files/{}", "files/{}/content", "models/{}", "models/{}/download", "models/tiny-gpt2/files/{}")
    return [folder.format(encoded) for folder in folders]


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "files/../../x", "files/a/../../../x", ".."])
def test_the_store_has_no_key_outside(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        Folder(tmp_path / "store").path(key)


def test_a_link_that_leads_out_of_the_store_is_not_followed(tmp_path: Path) -> None:
    store = Folder(tmp_path / "store")
    (store.root / "models").mkdir(parents=True)
    (store.root / "models" / "m").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="not a key"):
        store.path("models/m/secret.txt")
    (store.root / "files").mkdir()
    (store.root / "files" / "file-b").write_text("somebody else's")
    (store.root / "models" / "mine").mkdir()
    (store.root / "models" / "mine" / "config.json").symlink_to(store.root / "files" / "file-b")
    with pytest.raises(ValueError, match="not a key"):
        store.path("models/mine/config.json")
    (tmp_path / "home").symlink_to(tmp_path / "store")
    assert Folder(tmp_path / "home").path("files/x"), "the store itself may lie behind a link"


def test_a_link_in_a_model_is_not_handed_out(api: Api, http: httpx2.Client, outside: Path) -> None:
    job_id = make_job(http)["id"]
    make_model(api.settings, api.settings.organization, job_id, "ft:tiny-gpt2:finetuned::planted")
    planted = api.settings.storage_folder / "models" / job_id / "config.json"
    url = "/v1/models/ft:tiny-gpt2:finetuned::planted"
    assert good(http.get(f"{url}/files"))["data"][0]["path"] == "config.json"
    assert http.get(f"{url}/files/config.json").status_code == 200
    planted.unlink()
    planted.symlink_to(outside / "secret.txt")
    for path in ("files/config.json", "download"):
        answer = http.get(f"{url}/{path}")
        assert answer.status_code == 404
        assert SECRET not in answer.text


def test_strange_names_come_back_as_they_were(api: Api, http: httpx2.Client) -> None:
    for name in ("../../etc/passwd", "a b.jsonl", "\u202egpj.exe"):
        form: dict[str, Any] = {"data": {"purpose": "fine-tune"}, "files": {"file": (name, ROW)}}
        assert good(http.post("/v1/files", **form))["filename"] == name
