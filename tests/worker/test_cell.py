"""A trainer that its model has taken over reaches nothing but its job's files (S12).

The prisoner reaches for the same things twice: free, which shows that each is there to be reached, and in its
cell. Where the kernel here has no namespaces or no Landlock, the worker says so, and the test fails with it.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.embedded import programs
from app.settings import Settings
from app.storage import open_store
from app.tables import Event
from tests.worker.conftest import STAND_IN, Bench, NewBench
from worker import cells
from worker.cells import Cell, NoCell
from worker.launch import Trainer, WarmTrainers, trainer_environment


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        yield server.getsockname()[1]


def in_cell(bench: Bench, **changes: Any) -> Cell:
    """The cell that the bench's settings give, its trainers in it."""
    cell = cells.of(bench.runtime.settings, bench.runtime.store)
    assert cell is not None
    assert cell.lacking() == {}, "this kernel cannot show what the cell is for"
    cell = replace(cell, **changes)
    bench.runtime.trainers.close()
    bench.runtime.trainers = WarmTrainers(lambda: Trainer(STAND_IN, cell))
    return cell


def pried(bench: Bench, targets: dict[str, list[Any]]) -> dict[str, str]:
    job = bench.train(bench.make_job({"do": "pry", "targets": targets}))
    assert job.status == "succeeded", job.error_message
    (said,) = [event for event in bench.rows(Event, job.id) if event.code == "pried"]
    return dict(said.data)


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(str(path)) == 0


def test_a_prisoner_reaches_nothing_that_is_not_its_own(
    new_bench: NewBench, listener: int, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    bench = new_bench(stall=60)
    home = bench.runtime.settings.home
    other = home / "storage" / "jobs" / "ftjob-other" / "e1"
    other.mkdir(parents=True)
    (other / "weights").write_text("not yours")
    (home / "storage" / "files").mkdir(exist_ok=True)
    (home / "storage" / "files" / "file-other").write_text("not yours")
    (home / "key").write_text("not yours")
    (tmp_path / ".env").write_text("not yours")
    settings = bench.runtime.settings.model_copy(
        update={"redis_url": Settings(redis_url=redis_url).redis_url}
    )
    bench.runtime.settings = settings
    folders = {path.parent for path in cells.sockets(settings)}
    # Other tests leave sockets that nobody listens on.
    unix = [
        str(path) for folder in folders for path in folder.iterdir() if path.is_socket() and answers(path)
    ]
    assert len(unix) >= 2  # Postgres and Valkey
    targets: dict[str, list[Any]] = {
        "tcp": [f"127.0.0.1:{listener}"],
        "unix": unix,
        "read": [
            f"/proc/{os.getpid()}/environ",
            f"/proc/{os.getpid()}/cmdline",
            *map(str, (other, other / "weights", home / "key", home, tmp_path / ".env", "/root", "/tmp")),
            str(home / "storage" / "files" / "file-other"),
        ],
        "write": [str(path) for path in (other / "weights", home / "planted", home / "storage" / "planted")],
        "signal": [os.getpid()],
        "grow": [100 << 30],
    }
    free = pried(bench, targets)
    assert {name for name, outcome in free.items() if outcome != "reached"} == set()
    for path in targets["write"][1:]:
        Path(path).unlink()

    in_cell(bench)
    targets |= {
        "udp": ["8.8.8.8:53"],
        "mount": ["/mnt"],
        "fork": [20_000],
        "tcp": [f"127.0.0.1:{listener}", "169.254.169.254:80", "1.1.1.1:443", "10.0.0.1:5432"],
    }
    held = pried(bench, targets)
    assert {name for name, outcome in held.items() if outcome == "reached"} == set()
    assert held["fork 20000"] == "EAGAIN"
    assert held[f"grow {100 << 30}"] == "EFBIG"
    assert not [path for path in targets["write"][1:] if Path(path).exists()]


def test_a_trainer_in_its_cell_lives_and_dies_as_one_outside(new_bench: NewBench) -> None:
    """Exit codes, signals, helpers that would outlive it, and what it leaves behind."""
    bench = new_bench()
    in_cell(bench)
    job = bench.until_end(bench.make_job({"do": "signal", "number": 9, "at": 3, "below": 2}))
    assert (job.status, job.epoch) == ("succeeded", 2)
    failure = {"code": "c", "message": "m"}
    failed = bench.train(bench.make_job({"do": "exit", "code": 78, "failure": failure}))
    assert (failed.status, failed.error_code) == ("failed", "c")
    held = bench.train(bench.make_job({"do": "hold", "at": 3}, max_attempts=1))
    assert held.status == "failed"
    left = list((bench.runtime.settings.home / "tmp").iterdir())
    assert len(left) <= 1  # the next warm one's


def test_no_process_of_a_trainer_outlives_it(new_bench: NewBench) -> None:
    """Not even one that left its session and its process group."""
    bench = new_bench()
    cell = in_cell(bench)
    script = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)', 'escaped'],"
        " start_new_session=True)\n"
        "print('ready', file=sys.stderr, flush=True)\n"
        "time.sleep(300)\n"
    )
    trainer = Trainer((sys.executable, "-c", script), cell)
    while "ready" not in trainer.last_lines:
        trainer_alive = trainer.alive
        assert trainer_alive, list(trainer.last_lines)
    assert escaped()
    trainer.signal(9)
    assert trainer.end() == -9
    for _ in range(100):
        if not escaped():
            break
        subprocess.run(["sleep", "0.05"], check=True)
    assert escaped() == []


def escaped() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"escaped" in words[3:4] and words[1] == b"-c":
                found.append(entry.name)
    return found


def test_the_environment_of_a_trainer_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "FINETUNED_API_KEY"):
        monkeypatch.setenv(name, "canary")
    assert "canary" not in trainer_environment().values()


def test_the_generator_inherits_no_secret_that_it_has_no_use_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "HF_TOKEN", "WANDB_API_KEY", "FINETUNED_API_KEY"):
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("FINETUNED_UPSTREAMS", '{"m": {"url": "http://other/v1", "key": "canary"}}')
    settings = Settings(
        home=tmp_path, database_url="postgresql://a:canary@b/c", redis_url="redis://:canary@d"
    )
    (generator,) = (p for p in programs.programs(settings, 0, True) if p.name == "generator")
    told = "import os; print(*os.environ.items(), sep='\\n')"
    process = replace(generator, command=(sys.executable, "-c", told)).process(tmp_path)
    process.start()
    process.end(20)
    said = (tmp_path / "generator.log").read_text()
    assert "FINETUNED_HOME" in said
    assert "canary" not in said


def test_where_a_cell_is_required_there_is_no_training_without(
    new_bench: NewBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path, trainer_cell="required")
    store = open_store(settings)
    assert cells.of(settings, store) is not None
    monkeypatch.setattr(Cell, "lacking", lambda _: {"landlock": "Operation not supported"})
    with pytest.raises(NoCell, match="landlock"):
        cells.of(settings, store)
    loose = cells.of(settings.model_copy(update={"trainer_cell": "auto"}), store)
    assert loose is not None
    assert cells.of(settings.model_copy(update={"trainer_cell": "off"}), store) is None


def test_what_the_kernel_lacks_is_told_and_the_rest_holds(tmp_path: Path) -> None:
    """A process that may make no namespaces, as in most containers: files are out of reach all the same."""
    settings = Settings(home=tmp_path)
    cell = cells.of(settings, open_store(settings))
    assert cell is not None
    temporary = cell.open()
    (tmp_path / "key").write_text("not yours")
    told = without_namespaces(cell.command([], temporary, probe=True))
    assert set(json.loads(told)) == {"namespaces"}


def without_namespaces(command: list[str]) -> str:
    """What a command says where no namespace may be made: a limit of the user namespace that it runs in."""
    inside = f"echo 0 > /proc/sys/user/max_user_namespaces; exec {shlex.join(command)}"
    done = subprocess.run(
        # The launcher is tied to the process that starts it, which `unshare` becomes.
        ["unshare", "--user", "--map-root-user", "sh", "-c", inside],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


KNOCK = """
import json, os, socket, sys
told = {}
with socket.socket(socket.AF_UNIX) as queue:
    queue.connect(sys.argv[1])
    queue.sendall(b"CONFIG GET requirepass\\r\\n")
    told["queue"] = queue.recv(100).decode()
for path in sys.argv[2:]:
    try:
        open(path, "rb").read(1)
    except OSError as error:
        told[path] = type(error).__name__
print(json.dumps(told))
"""


def test_without_namespaces_the_queue_asks_for_what_a_trainer_cannot_know(
    tmp_path: Path, redis_url: str
) -> None:
    """Its socket is then there to be reached; the password's file, and our environment, are not."""
    settings = Settings(home=tmp_path / "home", redis_url=redis_url)
    (settings.home / "valkey").mkdir(parents=True)
    kept = settings.home / "valkey" / "valkey.password"
    kept.write_text("secret")
    cell = cells.of(settings, open_store(settings))
    assert cell is not None
    [socket_of_queue] = [path for path in cells.sockets(settings) if path.name == "valkey.sock"]
    script = (sys.executable, "-c", KNOCK, str(socket_of_queue), str(kept), f"/proc/{os.getpid()}/environ")
    told = json.loads(without_namespaces(cell.command(script, cell.open())))
    assert told.pop("queue").startswith("-NOAUTH")
    assert told == {str(kept): "PermissionError", f"/proc/{os.getpid()}/environ": "PermissionError"}


MEETING = """
import socket, sys
with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    server.listen(1)
    with socket.create_connection(server.getsockname()):
        print("met")
"""


@pytest.mark.parametrize("inner", [True, False], ids=["namespaces", "none"])
@pytest.mark.parametrize("several", [True, False])
def test_several_processes_of_a_job_meet_and_one_that_is_alone_has_nobody_to(
    tmp_path: Path, several: bool, inner: bool
) -> None:
    """Over a loopback of their own where there may be namespaces, else over the machine's, which Landlock
    closes to a trainer that is alone."""
    settings = Settings(home=tmp_path)
    cell = cells.of(settings, open_store(settings))
    assert cell is not None
    program = (sys.executable, "-I", "-S", "-c", MEETING)
    told = shlex.join(replace(cell, several=several).command(program, cell.open()))
    before = "" if inner else "echo 0 > /proc/sys/user/max_user_namespaces; "
    outside = ["unshare", "--user", "--map-root-user", "sh", "-c", f"{before}exec {told}"]
    done = subprocess.run(outside, capture_output=True, text=True, check=False)
    # In namespaces the network is the cell's own: whoever is alone may talk to itself.
    if several or inner:
        assert done.stdout == "met\n", done.stderr
    else:
        assert "PermissionError" in done.stderr
