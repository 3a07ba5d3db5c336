"""`download`: broken off and gone on with, damaged, lied to; a folder that is there is whole."""

import hashlib
import http.server
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI

from app.database import WorkerDatabase
from tests.app.conftest import Api
from tests.cli.conftest import DEADLINE, ROOT, Run
from tests.stand_ins.reporter import Reporter

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS, "onnx/notes.txt": b"inner"}
HALF = len(WEIGHTS) // 2


@dataclass
class Front:
    """Stands before the API and does to the weights what lines and disks do; `ranges` were asked for."""

    url: str = ""
    cut: int | None = None  # bytes of the weights after which the line breaks, once
    stall: int | None = None  # bytes after which nothing more comes, once
    damage: bool = False
    rename: str | None = None  # what the list says instead of config.json
    ranges: list[str | None] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def front(api: Api) -> Iterator[Front]:
    front = Front()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            passed = {name: self.headers[name] for name in ("authorization", "range") if name in self.headers}
            answer = httpx2.get(api.url + self.path, headers=passed, trust_env=False)
            body = answer.content
            if self.path.endswith("/files") and front.rename is not None:
                body = body.replace(b"config.json", front.rename.encode())
            weights = self.path.endswith("model.safetensors")
            if weights:
                front.ranges.append(self.headers.get("range"))
                if front.damage:
                    body = body[:-1] + bytes([body[-1] ^ 1])
            self.send_response(answer.status_code)
            self.send_header("content-type", answer.headers["content-type"])
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if weights and front.cut is not None:
                body, front.cut = body[: front.cut], None
                self.close_connection = True
            if weights and front.stall is not None:
                self.wfile.write(body[: front.stall])
                front.stall = None
                front.stalled.wait(DEADLINE)
                return
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    front.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever).start()
    yield front
    front.stalled.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def model(api: Api) -> str:
    """A published model of three files."""
    database = WorkerDatabase(api.settings)
    with api.client() as client:
        file = client.files.create(file=("rows.jsonl", b'{"text": "one"}\n'), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file.id)
        reporter = Reporter(api.settings, database, job.id)
        reporter.prepare()
        reporter.succeed(FILES)
    database.close()
    return reporter.model_name


def content(folder: Path) -> dict[str, bytes]:
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    manifest = json.loads(found.pop("manifest.json"))["files"]
    assert {name: fact["sha256"] for name, fact in manifest.items()} == {
        name: hashlib.sha256(data).hexdigest() for name, data in found.items()
    }
    return found


def test_a_model_is_downloaded_whole_and_once(run: Run, model: str, tmp_path: Path, front: Front) -> None:
    out = tmp_path / "soup"
    said = run("download", "last", "--out", str(out), "--url", front.url)
    assert said.code == 0, said.err
    assert content(out) == FILES
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("soup")) == ["soup"]
    again = run("download", model, "--out", str(out), "--url", front.url)
    assert (again.code, "already" in again.out) == (0, True)
    assert len(front.ranges) == 1
    (out / "config.json").write_text("[]")
    refused = run("download", model, "--out", str(out))
    assert (refused.code, "holds something else" in refused.err) == (2, True)
    assert (out / "config.json").read_text() == "[]"


def test_a_line_that_breaks_is_taken_up_where_it_broke(
    run: Run, model: str, tmp_path: Path, front: Front
) -> None:
    front.cut = HALF
    said = run("download", model, "--out", str(tmp_path / "out"), "--url", front.url)
    assert said.code == 0, said.err
    assert front.ranges == [None, f"bytes={HALF}-"]
    assert content(tmp_path / "out") == FILES


def test_after_a_kill_there_is_no_folder_and_the_next_one_goes_on(
    run: Run, api: Api, model: str, tmp_path: Path, front: Front
) -> None:
    front.stall = HALF
    out, part = tmp_path / "out", tmp_path / "out.partial/model.safetensors"
    command = [sys.executable, "-m", "app.cli", "download", model, "--out", str(out), "--url", front.url]
    child = subprocess.Popen([*command, "--home", str(api.settings.home)], cwd=ROOT)
    deadline = time.monotonic() + DEADLINE
    while not part.exists() or part.stat().st_size < HALF:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    beside = run("download", model, "--out", str(out))
    assert (beside.code, "Another download" in beside.err) == (1, True)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not out.exists()
    assert run("download", model, "--out", str(out), "--url", front.url).code == 0
    assert front.ranges == [None, f"bytes={HALF}-"]
    assert content(out) == FILES


def test_what_is_damaged_on_the_way_is_refused_and_removed(
    run: Run, model: str, tmp_path: Path, front: Front
) -> None:
    front.damage = True
    out = tmp_path / "out"
    said = run("download", model, "--out", str(out), "--url", front.url)
    assert (said.code, "model.safetensors arrived damaged" in said.err) == (1, True)
    assert not out.exists()
    assert not (tmp_path / "out.partial/model.safetensors").exists()
    front.damage = False
    assert run("download", model, "--out", str(out), "--url", front.url).code == 0


def test_remains_of_another_model_are_not_built_upon(
    run: Run, model: str, tmp_path: Path, front: Front
) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"x" * HALF)
    (partial / "stale.bin").write_bytes(b"x")
    mine = run("download", model, "--out", str(tmp_path / "out"), "--url", front.url)
    assert (mine.code, "no download's" in mine.err, (partial / "stale.bin").exists()) == (1, True, True)
    (partial / ".finetuned-download").touch()
    said = run("download", model, "--out", str(tmp_path / "out"), "--url", front.url)
    assert said.code == 0, said.err
    assert front.ranges == [f"bytes={HALF}-", None]
    assert content(tmp_path / "out") == FILES


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil"])
def test_a_name_that_leads_elsewhere_is_refused(
    run: Run, model: str, tmp_path: Path, front: Front, name: str
) -> None:
    front.rename = name
    said = run("download", model, "--out", str(tmp_path / "out"), "--url", front.url)
    assert (said.code, "outside of the model" in said.err) == (1, True)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name or "evil" in path.name] == []


def test_a_link_in_the_way_is_not_written_through(run: Run, model: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/model.safetensors").symlink_to(precious)
    assert run("download", model, "--out", str(tmp_path / "out")).code == 1
    assert precious.read_bytes() == b""


def test_what_is_not_there_is_said(run: Run, client: OpenAI, tmp_path: Path) -> None:
    assert run("download", "ft:nothing", "--out", str(tmp_path / "out")).code == 1
    base = run("download", "tiny-gpt2", "--out", str(tmp_path / "out"))
    assert (base.code, "no model 'tiny-gpt2' of yours" in base.err) == (1, True)
    assert not (tmp_path / "out.partial").exists()
