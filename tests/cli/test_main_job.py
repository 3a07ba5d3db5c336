"""The main job by the command line alone, on the whole service: submit, watch, download, generate, chat."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run, Terminal, runner
from tests.embedded.test_up import command, descendants
from tests.flow.stack import Stack

DISHES = ROOT / "examples/dishes.jsonl"


@pytest.fixture(scope="module")
def stack(shared_stack: Stack) -> Stack:
    return shared_stack


@pytest.fixture
def run(stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(monkeypatch, capsys, FINETUNED_HOME=str(stack.home))


@pytest.fixture(scope="module")
def model(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that was submitted and watched to its end in a terminal."""
    valid = tmp_path_factory.mktemp("data") / "valid.jsonl"
    valid.write_text("".join(DISHES.read_text().splitlines(keepends=True)[:20]))
    words = [
        "submit", str(DISHES), "-v", str(valid), "--max-steps", "12", "--batch-size", "4",
        "--set", "eval_steps=6", "--learning-rate", "5e-3", "--suffix", "cli", "--watch",
        "--home", str(stack.home),
    ]  # fmt: skip
    screen = Terminal(tuple(words), {"TERM": "xterm-256color"})
    try:
        code = screen.end()
    finally:
        screen.close()
    assert code == 0, screen.text
    assert "12/12" in screen.text
    found = re.search(r"succeeded: (ft:tiny-gpt2:\S+)", screen.text)
    assert found is not None, screen.text
    return found[1]


@pytest.fixture
def chat(stack: Stack, model: str) -> Iterator[Terminal]:
    arguments = ("chat", "last", "--max-tokens", "12", "--temperature", "0", "--home", str(stack.home))
    screen = Terminal(arguments, {"TERM": "xterm-256color"})
    yield screen
    screen.close()


def test_the_model_is_downloaded_and_writes(run: Run, model: str, tmp_path: Path) -> None:
    got = run("download", "last", "--out", str(tmp_path / "model"))
    assert got.code == 0, got.err
    assert json.loads((tmp_path / "model/config.json").read_text())["model_type"] == "gpt2"
    greedy = ("--max-tokens", "8", "--temperature", "0")
    streamed = run("generate", model, "Stir the", *greedy)
    whole = json.loads(run("generate", model[:-3], "--json", *greedy, said="Stir the").out)
    assert streamed.code == 0, streamed.err
    assert streamed.out == whole["choices"][0]["text"] + "\n"
    as_the_page_says = run("generate", "last", "Title:", "--seed", "1")
    assert as_the_page_says.code == 0, as_the_page_says.err
    assert as_the_page_says.out.strip()
    wrong = run("generate", model, "x", "--temperature", "9")
    assert (wrong.code, wrong.err.startswith("finetuned: temperature: ")) == (1, True)


def test_a_conversation_in_a_terminal(chat: Terminal) -> None:
    chat.type("How long does rice take?\n")
    chat.type("/nonsense\n")
    chat.wait_for("There is no /nonsense.")
    chat.type("/system Be brief.\n")
    chat.wait_for("The system message is set.")
    chat.type("/reset\n")
    chat.wait_for("begins anew.\n> ")
    chat.type("\x03")
    chat.wait_for("\nCtrl-D leaves.\n> ")
    chat.type("\x04")
    assert chat.end() == 0
    assert "finetuned: " not in chat.text, "something was refused"


def test_an_answer_is_stopped_and_the_conversation_goes_on(stack: Stack, chat: Terminal) -> None:
    """The generator is held for a moment: this model would have answered before anybody could stop it."""
    generator = next(n for n in descendants(stack.process.pid) if b"worker.generation" in command(n))
    chat.wait_until_asked()
    os.kill(generator, signal.SIGSTOP)
    try:
        chat.type("Go on\n")
        chat.wait_until_busy()
        chat.send("\x03")
        chat.wait_for("[stopped]\n> ")
    finally:
        os.kill(generator, signal.SIGCONT)
    before = len(chat.text)
    chat.type("And then?\n")
    chat.wait_until_asked()
    assert len(chat.text) > before + len("And then?\n> ")
    chat.type("\x04")
    assert chat.end() == 0


def test_a_conversation_may_come_from_a_pipe(run: Run, model: str) -> None:
    done = run("chat", model, "--max-tokens", "4", said="Hello\n/reset\nBye\n")
    assert done.code == 0, done.err
    assert "> " not in done.out.splitlines()[:1]


def test_the_file_is_checked_with_the_loss_mask_in_brackets(run: Run, model: str) -> None:
    done = run("files", "check", str(DISHES), "--rows", "1", "--max-length", "64")
    assert done.code == 0, done.err
    assert "[learned] and only read" in done.out
    assert re.search(r"tokens +[\d,]+, of which [\d,]+ are learned", done.out)
    both = json.loads(run("files", "check", str(DISHES), "--json").out)
    assert (both["report"]["object"], both["preview"]["object"]) == ("file.report", "file.preview")


def test_two_jobs_are_compared_and_one_is_diagnosed(run: Run, model: str) -> None:
    first = json.loads(run("jobs", "--json").out)["data"][0]["id"]
    again = run("submit", "--like", first, "--set", "max_steps=4", "--watch")
    assert again.code == 0, again.err
    second = again.out.split()[0]
    compared = run("compare", first, second)
    assert compared.code == 0, compared.err
    lines = {line.split("  ")[0].strip(): line for line in compared.out.splitlines() if line.strip()}
    assert "4" in lines["max_steps"]
    assert "learning_rate" not in lines
    assert f"b = {second}" in compared.out
    told = run("diagnose", second)
    assert "too_few_steps" in told.out
    command = next(line.strip() for line in told.out.splitlines() if "finetuned submit" in line)
    made = run(*command.split()[1:], "--dry-run", "--json")
    assert made.code == 0, made.err


def test_doctor_finds_nothing_to_mend_in_what_runs(run: Run, model: str) -> None:
    done = run("doctor", "--json")
    checks = {check["about"]: check for check in json.loads(done.out)["checks"]}
    for about in ("postgres", "schema", "broker", "api", "key", "workers"):
        assert checks[about]["level"] == "ok", checks[about]
    assert done.code == 0, [check for check in checks.values() if check["level"] == "fail"]
