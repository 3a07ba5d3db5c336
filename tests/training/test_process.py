"""The trainer as a process: what it prints, how it ends, and that nothing of it outlives its parent."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.dataset import DatasetError
from tests.training.conftest import Train
from worker.training import events, manifest
from worker.training.events import Event, Failed, Finished, Prepared, Ready, Saved, Step
from worker.training.failure import Failure, classify
from worker.training.job import Job
from worker.training.pulse import Pulse
from worker.training.siblings import Siblings

TRAINER = [sys.executable, "-m", "worker.training"]
# What the API, the worker and LoRA need, and a GPU box that only trains does not have.
ABSENT = ["accelerate", "celery", "fastapi", "kombu", "openai", "peft", "platformdirs", "psycopg"]
ABSENT += ["pydantic_settings", "redis", "sqlalchemy", "starlette", "structlog", "uvicorn"]
BARE = (
    f"import sys, runpy; sys.modules.update(dict.fromkeys({ABSENT!r})); "
    "runpy.run_module('worker.training', run_name='__main__', alter_sys=True)"
)
# Without what trains: that takes seconds to load, and no job will come.
IDLE = (
    "import sys, types, runpy; from worker.training import run; run.warm_up = lambda: None; "
    "sys.modules['worker.training.loop'] = types.ModuleType('loop'); "
    "runpy.run_module('worker.training', run_name='__main__', alter_sys=True)"
)
RECIPE: dict[str, Any] = {"learning_rate": 1e-3, "max_steps": 4, "save_steps": 2}


def arguments(job: Job, tmp_path: Path, recipe: dict[str, Any]) -> list[str]:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe))
    return [*TRAINER, str(path), "--data", str(job.data), "--model", str(job.model), "--out", str(job.out)]


def run(command: Sequence[str], **options: Any) -> tuple[int, list[Event], str]:
    """Exit status, what was heard on stdout (events and nothing else), and stderr."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    return done.returncode, [events.parse(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture
def waiting() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes a test starts; none survives it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def warm(waiting: list[subprocess.Popen[str]], *trainer: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [*(trainer or TRAINER), "--wait"]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
    waiting.append(process)
    assert events.parse(heard(process)) == Ready()
    return process


def heard(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def tell(process: subprocess.Popen[str], job: Job, recipe: dict[str, Any]) -> None:
    assert process.stdin is not None
    said = {
        "recipe": recipe,
        "data": str(job.data),
        "model": str(job.model),
        "out": str(job.out),
        "name": "n",
    }
    process.stdin.write(json.dumps(said) + "\n")
    process.stdin.flush()


def test_a_person_runs_what_the_worker_runs_where_nothing_else_is_installed(job: Job, tmp_path: Path) -> None:
    command = arguments(job, tmp_path, RECIPE)
    status, said, log = run([sys.executable, "-c", BARE, *command[len(TRAINER) :]])
    assert status == 0, log
    assert [type(event) for event in said if not isinstance(event, Saved)] == [
        Prepared,
        *[Step] * 4,
        Finished,
    ]
    last = said[-1]
    assert isinstance(last, Finished)
    assert last.model_path == str(job.out / "model")
    assert manifest.verify(job.out / "model") == last.manifest_sha256


def test_a_warm_child_takes_its_job_from_stdin_and_starts_at_once(
    job: Job, waiting: list[subprocess.Popen[str]]
) -> None:
    process = warm(waiting)
    loaded = Path(f"/proc/{process.pid}/maps").read_text()
    assert "libtorch" in loaded, "to load that is what takes seconds"
    tell(process, job, RECIPE)
    while not isinstance(event := events.parse(heard(process)), Step):
        assert not isinstance(event, Failed), event
    while not isinstance(event, Finished):
        event = events.parse(heard(process))
    assert process.wait(60) == 0


def test_sigterm_saves_exits_75_and_the_resume_finishes_the_same(
    job: Job, tmp_path: Path, waiting: list[subprocess.Popen[str]]
) -> None:
    process = warm(waiting)
    tell(process, job, {**RECIPE, "max_steps": 100_000, "save_steps": 100_000})
    while not (isinstance(event := events.parse(heard(process)), Step) and event.step >= 3):
        pass
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    rest = [events.parse(line) for line in process.stdout]
    assert process.wait(60) == 75
    saved = rest[-1]
    assert isinstance(saved, Saved)
    assert manifest.verify(Path(saved.path)) == saved.manifest_sha256
    steps = [event.step for event in rest if isinstance(event, Step)]
    assert saved.step == (steps or [3])[-1]


def test_an_idle_warm_child_leaves_on_sigterm_and_at_the_end_of_stdin(
    waiting: list[subprocess.Popen[str]],
) -> None:
    process = warm(waiting, sys.executable, "-c", IDLE)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    other = warm(waiting, sys.executable, "-c", IDLE)
    assert other.stdin is not None
    other.stdin.close()
    assert other.wait(60) == 0


def test_no_trainer_outlives_its_parent(tmp_path: Path) -> None:
    middle = (
        "import subprocess, sys, time\n"
        f"command = {[sys.executable, '-c', IDLE, '--wait']!r}\n"
        "child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\nprint(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 50
    while Path(f"/proc/{child}").exists() and state(child) != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    alive = Path(f"/proc/{child}").exists() and state(child) != "Z"
    if alive:
        os.kill(child, signal.SIGKILL)
    assert not alive


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_full_disk_is_79(job: Job, tmp_path: Path) -> None:
    """A limit on the size of files stands in: safetensors tells of both in words only."""
    status, said, log = run(arguments(job, tmp_path, RECIPE), preexec_fn=limited)
    assert status == 79, log
    assert isinstance(said[-1], Failed)
    assert said[-1].code == "disk_full"
    folder = job.out / "checkpoints"
    assert [path.name for path in folder.iterdir()] == []


def test_a_bad_recipe_is_78_and_says_what(job: Job, tmp_path: Path) -> None:
    status, said, log = run(arguments(job, tmp_path, {**RECIPE, "learnin_rate": 1}))
    assert status == 78, log
    assert isinstance(failed := said[-1], Failed)
    assert (failed.code, failed.param) == ("unknown_parameter", "learnin_rate")


def test_what_only_the_model_or_the_data_show_to_be_bad_is_78_too(train: Train, tmp_path: Path) -> None:
    """In this process: how a failure ends one is seen above."""
    with pytest.raises(Failure) as too_long:
        train(max_length=65)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\nnot json\n')
    with pytest.raises(DatasetError, match="line 2") as unreadable:
        train(data=bad)
    found = [classify(raised.value) for raised in (too_long, unreadable)]
    assert [failure.exit_status for failure in found] == [78, 78]
    assert [(failure.code, failure.param) for failure in found] == [
        ("invalid_value", "max_length"),
        ("invalid_training_file", None),
    ]


def test_a_stalled_step_ends_the_job_with_its_reason(job: Job, tmp_path: Path) -> None:
    stuck = (
        "import sys, time, worker.training.model as m\n"
        "m.Model.lay = lambda *_: time.sleep(60)\n"
        "from worker.training import run\n"
        "sys.exit(run.run(sys.argv[1:], sys.stdout))\n"
    )
    command = arguments(job, tmp_path, {**RECIPE, "max_step_time": 1})
    status, said, log = run([sys.executable, "-c", stuck, *command[3:]])
    assert status == 81, log
    assert isinstance(said[-1], Failed)
    assert (said[-1].code, said[-1].param) == ("stalled", "max_step_time")


def test_a_folder_that_brings_code_or_pickles_is_refused(job: Job, tmp_path: Path) -> None:
    from worker.training.failure import Failure
    from worker.training.model import inspect

    code, pickled = (Path(shutil.copytree(job.model, tmp_path / name)) for name in ("code", "pickled"))
    config = json.loads((code / "config.json").read_text())
    (code / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for folder, reason in ((code, "never run"), (pickled, "safetensors")):
        with pytest.raises(Failure, match=reason):
            inspect(folder)


def test_long_work_without_news_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte takes many minutes to encode: the supervisor would take the silence for death."""
    at, told = [0.0], []
    monkeypatch.setattr("worker.training.pulse.time", SimpleNamespace(monotonic=lambda: at[0]))
    pulse = Pulse(lambda: told.append(at[0]))
    for second in range(200):
        at[0] = float(second)
        pulse.beat()
    assert told == [61, 122, 183]
    assert events.parse(events.line(events.Busy())) == events.Busy()


def test_of_processes_that_end_badly_the_first_says_why(tmp_path: Path) -> None:
    one, other = Siblings(tmp_path / "status"), Siblings(tmp_path / "status")
    assert [one.first(78), other.first(1), one.end(0)] == [True, False, 0]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["78"]
    assert Siblings(None).first(1)
    assert Siblings(None).first(1)
