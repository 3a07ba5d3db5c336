"""Where commands go and with whose key; what is said when nobody answers."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.conftest import Api
from tests.cli.conftest import ROOT, Run


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[str | None]]]:
    """Some other web server of this machine, and the keys that it was sent."""
    seen: list[str | None] = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("authorization"))
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b"<h1>Hello</h1>")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_nobody_there_is_one_sentence_and_what_to_do(run: Run) -> None:
    said = run("jobs", "--url", "http://127.0.0.1:9")
    assert said.code == 3
    assert said.err == (
        "finetuned: Nothing answers at http://127.0.0.1:9: start it with `finetuned up`, or name another"
        " address with --url.\n"
    )


def test_somebody_else_there_is_said(run: Run, stranger: tuple[str, list[str | None]]) -> None:
    said = run("jobs", "--url", stranger[0])
    assert (said.code, "is no finetuned" in said.err) == (3, True)


def test_an_address_may_end_in_v1_and_must_be_one(run: Run, api: Api) -> None:
    assert run("jobs", "--url", f"{api.url}/v1/").code == 0
    assert run("jobs", "--url", "localhost:8000").code == 2
    assert run("jobs", "--url", "http://me:secret@127.0.0.1").code == 2


def test_the_home_tells_address_and_key(run: Run, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINETUNED_URL")
    monkeypatch.delenv("FINETUNED_API_KEY")
    monkeypatch.delenv("FINETUNED_HOME")
    api.settings.address_file.write_text(f"{api.url}\n")
    assert run("jobs", "--home", str(api.settings.home)).code == 0


def test_a_key_comes_from_a_file_and_a_wrong_one_is_said_to_be(
    run: Run, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_text(f"{api.stranger_key}\n")
    assert run("jobs", "--key-file", str(key)).code == 0
    key.write_text("ft_nonsense")
    wrong = run("jobs", "--key-file", str(key))
    assert (wrong.code, "--key-file or FINETUNED_API_KEY" in wrong.err) == (1, True)
    key.write_text("two words")
    assert run("jobs", "--key-file", str(key)).code == 1
    monkeypatch.setenv("FINETUNED_API_KEY", "secret\nword")
    broken = run("jobs")
    assert (broken.code, "secret" in broken.err) == (1, False)
    missing = run("jobs", "--key-file", str(tmp_path / "none"))
    assert (missing.code, "No such file" in missing.err) == (1, True)


def test_the_homes_key_is_sent_to_this_machine_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINETUNED_API_KEY")
    said = run("jobs", "--url", "http://192.0.2.1:8000")
    assert (said.code, "No API key for http://192.0.2.1:8000" in said.err) == (1, True)


def test_a_proxy_is_not_told_what_is_said_to_this_machine(
    run: Run, stranger: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", stranger[0])
    monkeypatch.setenv("http_proxy", stranger[0])
    assert run("jobs").code == 0
    assert stranger[1] == []


def test_help_loads_nothing_that_is_slow() -> None:
    script = "import sys; from app import cli\ntry: cli.main()\nfinally: print(*sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", script, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    loaded = set(said.stdout.splitlines()[-1].split())
    assert "typer" in loaded
    assert not loaded & {"httpx2", "pydantic", "pydantic_settings", "sqlalchemy", "app.settings", "yaml"}


def test_the_shell_completes_commands_and_ids(api: Api) -> None:
    def completed(words: str, **environment: str) -> list[str]:
        asked = {
            "_FINETUNED_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            "FINETUNED_URL": api.url,
            "FINETUNED_API_KEY": api.key,
            **environment,
        }
        said = subprocess.run(
            [sys.executable, "-m", "app.cli"],
            cwd=ROOT, env={**os.environ, **asked}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert said.stderr == ""
        return said.stdout.split()

    assert completed("finetuned dia") == ["diagnose"]
    assert completed("finetuned generate tiny") == ["tiny-gpt2"]
    assert completed("finetuned job ftjob-", FINETUNED_URL="http://127.0.0.1:9") == []
