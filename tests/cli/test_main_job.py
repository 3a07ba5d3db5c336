"""The main job by the command line alone, on the whole service: submit, watch, download, generate, chat."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run, Terminal, runner
from tests.flow.conftest import stack
from tests.flow.stack import Stack

__all__ = ["stack"]
DISHES = ROOT / "examples/dishes.jsonl"


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
    wrong = run("generate", model, "x", "--temperature", "9")
    assert (wrong.code, wrong.err.startswith("finetuned: temperature: ")) == (1, True)


def test_a_conversation_in_a_terminal(chat: Terminal) -> None:
    chat.wait_for("> ")
    chat.send("How long does rice take?\n")
    seen = len(chat.text)
    chat.send("/nonsense\n")
    chat.wait_for("There is no /nonsense.")
    assert len(chat.text) > seen
    chat.send("/system Be brief.\n")
    chat.wait_for("The system message is set.")
    chat.send("/reset\n")
    chat.wait_for("begins anew.\n> ")
    chat.press("\x03", "\nCtrl-D leaves.\n> ")
    chat.send("\x04")
    assert chat.end() == 0
    assert "finetuned: " not in chat.text, "something was refused"


def test_an_answer_is_stopped_and_the_conversation_goes_on(stack: Stack, model: str) -> None:
    arguments = ("chat", model, "--home", str(stack.home), "--temperature", "2", "--stop", "never")
    screen = Terminal(arguments, {"TERM": "dumb"})
    try:
        screen.wait_for("> ")
        screen.send("Go on\n")
        screen.wait_for("Go on\n")
        before = len(screen.text)
        while len(screen.text) < before + 2:
            screen.wait_for("")
            assert screen.read()
        screen.send("\x03")
        screen.wait_for("[stopped]\n> ")
        screen.send("\x04")
        assert screen.end() == 0
    finally:
        screen.close()


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
