"""`watch` in a real pseudo-terminal, on a job whose numbers the worker's own code writes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from app.database import WorkerDatabase
from tests.app.conftest import Api, serving
from tests.cli.conftest import ROOT, OpenTerminal, Run
from tests.stand_ins.reporter import Reporter


@pytest.fixture
def reporter(api: Api, client: OpenAI, rows: Path) -> Iterator[Reporter]:
    """A job that is running, with ten steps to go."""
    file = client.files.create(file=rows, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file.id)
    database = WorkerDatabase(api.settings)
    held = Reporter(api.settings, database, job.id)
    held.prepare()
    yield held
    database.close()


def test_a_job_is_drawn_as_it_goes_and_its_end_is_the_exit_code(
    terminal: OpenTerminal, reporter: Reporter
) -> None:
    reporter.steps(1, 2, 3, 4)
    screen = terminal("watch", reporter.job_id)
    screen.wait_for("4/10")
    assert any(0x2800 < ord(character) < 0x2900 for character in screen.text), "no curve is drawn"
    assert "loss 0.2500" in screen.text
    assert "9 tokens/s" in screen.text
    reporter.steps(5, 6)
    screen.wait_for("6/10")
    reporter.evaluate(6)  # of a step that is on the screen already
    screen.wait_for("validation 0.5000")
    reporter.steps(7, 8, 9, 10)
    reporter.save(10)
    screen.wait_for("Checkpoint at step 10")
    reporter.succeed()
    assert screen.end() == 0
    assert f"succeeded: {reporter.model_name}" in screen.text
    assert "finetuned generate" in screen.text


def test_ctrl_c_leaves_the_job_running_and_says_how_to_return(
    terminal: OpenTerminal, reporter: Reporter, client: OpenAI
) -> None:
    reporter.steps(1)
    screen = terminal("watch", "last")
    screen.wait_for("1/10")
    screen.send("\x03")
    assert screen.end() == 130
    assert f"To return: finetuned watch {reporter.job_id}" in screen.text
    assert client.fine_tuning.jobs.retrieve(reporter.job_id).status == "running"


def test_a_restart_of_the_api_loses_nothing_and_repeats_nothing(api: Api, reporter: Reporter) -> None:
    port = 0
    command = [sys.executable, "-m", "app.cli", "watch", reporter.job_id, "--json"]
    with serving(api.settings) as url:
        port = int(url.rpartition(":")[2])
        watching = subprocess.Popen(
            [*command, "--url", url, "--home", str(api.settings.home)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout is not None
        reporter.steps(1, 2, 3)
        lines: list[dict[str, Any]] = []
        while not lines or lines[-1].get("step") != 3:
            lines.append(json.loads(watching.stdout.readline()))
    reporter.steps(4, 5)
    with serving(api.settings, port):
        reporter.steps(6)
        reporter.fail()
        rest, _ = watching.communicate(timeout=60)
    lines += map(json.loads, rest.splitlines())
    assert watching.returncode == 4
    assert [line["step"] for line in lines if line["object"].endswith("metric")] == [1, 2, 3, 4, 5, 6]
    events = [line["id"] for line in lines if line["object"].endswith("event")]
    assert len(events) == len(set(events)) > 2
    assert (lines[-1]["object"], lines[-1]["status"]) == ("fine_tuning.job", "failed")


def test_without_a_terminal_there_are_lines_and_no_colours(run: Run, reporter: Reporter) -> None:
    reporter.steps(1, 2)
    reporter.fail()
    said = run("watch", reporter.job_id)
    assert said.code == 4
    assert "It went wrong. (bad)" in said.out
    assert "\x1b" not in said.out


def test_a_pause_ends_the_watching(terminal: OpenTerminal, client: OpenAI, rows: Path) -> None:
    file = client.files.create(file=rows, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file.id)
    screen = terminal("watch", job.id, NO_COLOR="1")
    screen.wait_for("place")
    client.fine_tuning.jobs.pause(job.id)
    assert screen.end() == 6
    assert f"finetuned resume {job.id}" in screen.text
    assert "\x1b[3" not in screen.written, "colours in spite of NO_COLOR"
