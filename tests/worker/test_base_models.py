"""What a worker takes for a base model: one commit of the hub, never its code; of our own what was sealed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from app.catalogue import hub_folder
from app.settings import Settings
from app.tables import Event, Job, Model
from app.tiny import model as tiny
from tests.security import zoo
from tests.stand_ins import hub
from tests.worker.conftest import Bench

ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: huggingface_hub reads where the hub is when it is loaded.
FETCH = """
import json, sys
from pathlib import Path
from app.settings import Settings
from app.model_folder import UnusableModel
from worker import hub
for home, name, revision in json.load(sys.stdin):
    try:
        found = hub.fetch(name, Settings(home=home), revision)
        said = [found.folder.name, found.revision, (found.folder / "merges.txt").read_text()]
    except UnusableModel as error:
        said = [type(error).__name__, str(error)]
    print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def served() -> Iterator[hub.Hub]:
    with hub.serving() as running:
        yield running


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.ensure(tmp_path_factory.mktemp("sound") / tiny.NAME)


def contents(folder: Path, **more: bytes) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()} | more


def fetch(served: hub.Hub, *asked: tuple[Path, str, str | None]) -> list[list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", FETCH],
        input=json.dumps([[str(home), *rest] for home, *rest in asked]),
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": served.url, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_branch_that_moves_moves_no_job_that_has_begun(
    served: hub.Hub, sound: Path, tmp_path: Path
) -> None:
    repository = served.repository("them/gpt")
    more = {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"x", "onnx/model.safetensors": b"x"}
    first = repository.commit(contents(sound, **{"merges.txt": b"first", **more}))
    second = repository.commit(contents(sound, **{"merges.txt": b"second"}))
    here, there = tmp_path / "here", tmp_path / "there"
    served.asked.clear()
    said = fetch(
        served,
        (here, "them/gpt", first),  # a job that began before the branch moved, on another machine
        (here, "them/gpt", None),  # what is here is used
        (there, "them/gpt", None),
        (there, "them/gpt", first),
        (there, "them/gpt", "main"),
    )
    assert said == [
        ["them--gpt", first, "first"],
        ["them--gpt", first, "first"],
        ["them--gpt", second, "second"],
        [f"them--gpt@{first}", first, "first"],
        ["UnusableModel", "'main' is no commit of the hub."],
    ]
    fetched = {path.rpartition("/")[2] for path in served.asked if "/resolve/" in path}
    assert "model.safetensors" in fetched
    assert not [name for name in fetched if name.endswith((".py", ".bin"))]
    assert not [path for path in served.asked if "onnx" in path]


def test_what_we_do_not_run_is_neither_fetched_whole_nor_kept(
    served: hub.Hub, sound: Path, tmp_path: Path
) -> None:
    for name in ("auto_map", "a vocabulary of 10^9", "another model's type"):
        cage = zoo.build(sound, tmp_path / name, zoo.SPECIMENS[name][0])
        served.repository(f"evil/{name.split()[0]}").commit(contents(cage))
    served.asked.clear()
    said = fetch(
        served,
        *((tmp_path, f"evil/{name}", None) for name in ("auto_map", "a", "another", "nobody")),
    )
    assert [kind for kind, _ in said] == ["UnusableModel"] * 4
    assert [path.name for path in (tmp_path / "hub").iterdir()] == []
    # Of the first and third config.json was enough to tell.
    weights = [path for path in served.asked if path.endswith("model.safetensors") and "GET" in path]
    assert [path.split("/")[1] for path in weights] == ["a"]


def test_the_commit_is_told_once_and_believed_ever_after(bench: Bench, sound: Path, tmp_path: Path) -> None:
    """The folder is laid down as a fetch would have left it: there is no hub to ask."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = zoo.build(sound, hub_folder("them/gpt", Settings(home=tmp_path)), lambda _: None)
    (folder / ".revision").write_text(commit)
    forged = json.dumps({"event": "notice", "level": "info", "code": "base_model", "message": "no"})
    dies = {"do": "signal", "number": 9, "at": 3, "below": 2}
    job_id = bench.make_job({"do": "say", "line": forged, "times": 1}, dies)
    with bench.runtime.database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(source="hub:them/gpt"))
    assert bench.until_end(job_id).status == "succeeded"
    told = [event for event in bench.rows(Event, job_id) if event.code == "base_model"]
    assert told[0].data == {"revision": commit}
    assert [event.data for event in told[1:] if event.data] == []


def path_of(bench: Bench, key: str) -> Path:
    path = bench.runtime.store.place(key)
    return path if path is not None else bench.runtime.store.scratch(key)


@pytest.mark.parametrize("harm", ["weights", "manifest", "row"])
def test_what_was_trained_here_must_be_what_was_sealed(bench: Bench, harm: str) -> None:
    first = bench.train(bench.make_job())
    (model,) = bench.rows(Model, first.id)
    folder = path_of(bench, model.key)
    if harm == "weights":
        (folder / "model.safetensors").write_bytes(b"other")
    if harm == "manifest":  # changed with its manifest, as who can write the store could
        from worker.training import manifest

        (folder / "config.json").write_text('{"a": 1}')
        (folder / "manifest.json").unlink()
        manifest.seal(folder)
    second = bench.make_job()
    with bench.runtime.database.transaction() as session:
        key = "models/nowhere" if harm == "row" else model.key
        if harm == "row":
            path_of(bench, key).mkdir(parents=True)
            for path in folder.iterdir():
                (path_of(bench, key) / path.name).write_bytes(path.read_bytes())
        session.execute(update(Job).where(Job.id == second).values(source=f"store:{key}"))
    ended = bench.train(second)
    assert (ended.status, ended.error_code) == ("failed", "model_unavailable")
    assert "sealed" in str(ended.error_message) or "trained" in str(ended.error_message)
