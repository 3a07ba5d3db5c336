"""`finetuned up` with stand-ins for its programs: started, killed, stopped; what it says and leaves."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr

from app.embedded import sockets
from app.embedded import up as whole
from app.embedded.process import EmbeddedError
from app.embedded.programs import ROOT, programs
from app.embedded.up import announce, check_loopback, prepare
from app.settings import Settings

START_LIMIT = 100.0  # seconds for what takes five on an idle machine
Up = subprocess.Popen[str]
NewUp = Callable[..., Up]
Given = dict[str, str]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def new_up(home: Path) -> Iterator[NewUp]:
    """Starts `up` on one and the same home; what still runs at the end is killed."""
    started = []

    def start(*arguments: str, port: int = 0, **environment: str) -> Up:
        stand_in = ["tests.embedded.stand_in", str(home), str(port), *arguments]
        real = ["app.cli", "up", "--home", str(home), "--port", str(port)]
        command = [sys.executable, "-m", *(real if arguments == ("real",) else stand_in)]
        pipe = subprocess.PIPE
        variables = {**os.environ, **environment}
        started.append(
            subprocess.Popen(
                command,
                stdout=pipe,
                stderr=pipe,
                text=True,
                cwd=ROOT,
                env=variables,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for up in started:
        up.kill()
        up.communicate()
    sockets.remove(home / "sockets")  # where a test failed


@pytest.fixture
def given(empty_database_url: str, redis_url: str) -> Given:
    """Servers that are already there, for a quicker start."""
    return {"DATABASE_URL": empty_database_url, "REDIS_URL": redis_url}


def wait_for(condition: Callable[[], object], up: Up | None = None) -> None:
    deadline = time.monotonic() + START_LIMIT
    while not condition():
        if up is not None and up.poll() is not None:
            pytest.fail(f"ended early: {up.communicate()}")
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ready(up: Up, home: Path) -> str:
    """Its address, once it is there."""
    wait_for((home / "address").exists, up)
    return (home / "address").read_text().strip()


def worker(home: Path, up: Up, but: int | None = None) -> int:
    """The process number of the worker; of another than `but`."""
    path = home / "worker.pid"
    wait_for(lambda: path.exists() and path.read_text() not in ("", str(but)), up)
    return int(path.read_text())


def starts(address: str) -> int:
    return int(httpx2.get(f"{address}/starts", timeout=10).json()[0])


def command(number: int) -> bytes:
    """A process's arguments; none once it has ended."""
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


def descendants(number: int) -> list[int]:
    """The processes that this one started, and theirs."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # After the name in parentheses, which may hold anything: state, parent.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [number]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found[1:]


def processes(home: Path) -> list[int]:
    """Everything that works for this home: by its arguments, its environment or its working folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            text += os.fsencode((process / "cwd").readlink())
        except OSError:
            continue
        if os.fsencode(home) in text:
            found.append(int(process.name))
    return found


def stop(up: Up, number: signal.Signals = signal.SIGINT) -> str:
    """As a terminal does it: Ctrl-C goes to every process of the group."""
    os.killpg(up.pid, number)
    output, errors = up.communicate(timeout=60)
    assert up.returncode == 0, errors
    return output


def test_ctrl_c_leaves_no_process_and_no_socket_folder(new_up: NewUp, home: Path) -> None:
    up = new_up()
    address = ready(up, home)
    worker(home, up)
    folder = Path((home / "sockets").read_text())
    assert folder.exists()
    assert len(processes(home)) >= 5, "up, api, worker and two servers"
    output = stop(up)
    assert f"ready at {address}" in output
    assert str(home / "key") in output
    assert f"dashboard      {address}/\n" in output
    assert "ft-a-key" not in output, "what is no terminal is kept by somebody"
    assert processes(home) == []
    assert not folder.exists()
    assert not (home / "address").exists()
    assert (home / "saved").exists(), "the worker had its time to save"


def test_a_person_gets_a_link_with_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("ft-a-key\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    said: list[str] = []
    announce(Settings(home=tmp_path, port=1234), said.append)
    assert "dashboard      http://127.0.0.1:1234/#key=ft-a-key\n" in said[0]


def test_given_servers_are_used_instead_and_sigterm_stops_it_too(
    new_up: NewUp, home: Path, given: Given
) -> None:
    up = new_up(**given)
    assert starts(ready(up, home)) == 1
    worker(home, up)
    stop(up, signal.SIGTERM)
    assert not (home / "postgres").exists()
    assert not (home / "valkey").exists()
    assert processes(home) == []
    assert (home / "saved").exists()


def test_killed_it_starts_again_without_repair_and_keeps_its_rows(new_up: NewUp, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    up = new_up(port=port)
    assert starts(ready(up, home)) == 1
    worker(home, up)
    folder = Path((home / "sockets").read_text())
    (home / "address").unlink()
    up.kill()
    wait_for(lambda: processes(home) == [])
    assert not (home / "saved").exists()
    up = new_up(port=port)
    assert starts(ready(up, home)) == 2
    assert not folder.exists()
    (home / "address").unlink()
    up.kill()
    # In the same moment, while the children are still dying.
    up = new_up(port=port)
    assert starts(ready(up, home)) == 3
    stop(up)


def test_a_second_one_on_the_same_home_is_refused(new_up: NewUp, home: Path, given: Given) -> None:
    up = new_up(**given)
    address = ready(up, home)
    second = new_up(**given)
    assert second.wait(START_LIMIT) == 1
    assert second.stderr is not None
    sentence = f"already up in {home} (process {up.pid}): stop it first, or choose another --home."
    assert sentence in second.stderr.read()
    assert starts(address) == 1
    stop(up)


def test_a_program_and_a_server_that_die_are_started_again(new_up: NewUp, home: Path) -> None:
    up = new_up()
    address = ready(up, home)
    first = worker(home, up)
    os.kill(first, signal.SIGKILL)
    worker(home, up, but=first)
    postgres = int((home / "postgres" / "cluster" / "postmaster.pid").read_text().split()[0])
    os.kill(postgres, signal.SIGKILL)

    def answers() -> bool:
        try:
            return starts(address) == 1
        except httpx2.HTTPError:
            return False

    wait_for(lambda: not answers())
    wait_for(answers, up)
    output = stop(up)
    assert "worker ended (killed by SIGKILL); starting it again in 1 s" in output
    assert "postgres ended (killed by SIGKILL); starting it again in 1 s" in output


def test_a_second_ctrl_c_does_not_wait_for_a_program_that_will_not_end(
    new_up: NewUp, home: Path, given: Given
) -> None:
    up = new_up("api", "stubborn", **given)
    ready(up, home)
    worker(home, up)
    up.send_signal(signal.SIGINT)
    time.sleep(1.3)
    assert up.poll() is None, "the worker has 20 s"
    began = time.monotonic()
    stop(up)
    assert time.monotonic() - began < 15
    assert processes(home) == []


def test_a_program_that_cannot_start_ends_it_with_its_last_words(
    new_up: NewUp, home: Path, given: Given
) -> None:
    up = new_up("mute", **given)
    _, errors = up.communicate(timeout=START_LIMIT)
    assert up.returncode == 1
    assert "api does not start (exit code 1):\nthe api has nothing to say" in errors
    assert processes(home) == []
    assert not (home / "sockets").exists()


def test_the_real_programs_die_with_it_and_come_back(new_up: NewUp, home: Path) -> None:
    def all_run() -> bool:
        commands = [command(number) for number in descendants(up.pid)]
        return all(any(name in text for text in commands) for name in names)

    names = (b"app.embedded.api", b"celery", b"worker.generation", b"worker.training")
    up = new_up("real")
    key = {"Authorization": f"Bearer {(ready(up, home), (home / 'key').read_text().strip())[1]}"}
    wait_for(all_run, up)
    (home / "address").unlink()
    all_of_it = descendants(up.pid)
    up.kill()
    wait_for(lambda: not any(command(number) for number in all_of_it))
    up = new_up("real")
    models = httpx2.get(f"{ready(up, home)}/v1/models", headers=key, timeout=10)
    assert models.status_code == 200
    wait_for(all_run, up)
    all_of_it = descendants(up.pid)
    stop(up)
    assert not any(command(number) for number in all_of_it)
    assert "celery" in (home / "logs" / "worker.log").read_text()
    assert "celery" in (home / "logs" / "worker.log.1").read_text(), "the run before is kept"


def finetuned(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.cli", "up", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=START_LIMIT)


@pytest.mark.parametrize("below", ["", "inner"])
def test_a_home_that_cannot_be_is_one_sentence(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match=r"home folder .*file.* cannot be used \(.*--home"):
        whole.up(Settings(home=tmp_path / "file" / below, port=0), print)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("secret-word", "DATABASE_URL is no postgresql://"),
        ("postgresql://me:secret-word@127.0.0.1:1/x", "cannot be used: .*port 1 failed"),
    ],
)
def test_a_database_that_is_not_there_is_one_sentence(tmp_path: Path, url: str, told: str) -> None:
    with pytest.raises(EmbeddedError, match=told) as refused:
        prepare(Settings(home=tmp_path, database_url=SecretStr(url)))
    assert "secret-word" not in str(refused.value)


def test_a_port_in_use_is_one_sentence(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = finetuned("--home", str(home), "--port", str(port))
    assert ended.returncode == 1
    assert ended.stderr == (
        f"finetuned: Port {port} of 127.0.0.1 cannot be used (Address already in use): "
        "choose another with --port, or a free one with --port 0.\n"
    )
    assert processes(home) == []


def test_an_address_that_others_could_reach_is_one_sentence(home: Path) -> None:
    ended = finetuned("--home", str(home), "--host", "192.168.1.5")
    assert ended.returncode == 1
    sentence = "finetuned: finetuned up listens on this machine only, and 192.168.1.5 is no.*\n"
    assert re.fullmatch(sentence, ended.stderr)
    assert not home.exists()


def test_only_loopback_addresses_are_listened_on() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        check_loopback(host)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", "127.0.0.1.example.com", ""):  # noqa: S104
        with pytest.raises(EmbeddedError):
            check_loopback(host)


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="takes root's rights away to see"
)
def test_root_without_any_way_to_shed_its_rights_is_told_what_to_do(home: Path) -> None:
    # As in a container that grants nothing: only root exists, and no further namespace may be made.
    script = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    bare = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"]
    up = [sys.executable, "-m", "app.cli", "up", "--home", str(home), "--port", "0"]
    ended = subprocess.run([*bare, *up], capture_output=True, text=True, cwd=ROOT, timeout=START_LIMIT)
    assert ended.returncode == 1
    assert "run finetuned as an ordinary user, or set DATABASE_URL" in ended.stderr
    assert not (home / "sockets").exists()


def test_the_generator_is_told_no_secret_and_no_argument_holds_one(home: Path) -> None:
    settings = Settings(home=home, database_url="postgresql://u:secret@/d", redis_url="redis://:secret@host")
    api, generator, embedded_worker = programs(settings, 3, embedded_generator=True)
    assert "secret" not in str(generator.environment)
    assert generator.environment["DATABASE_URL"] is None
    for program in (api, generator, embedded_worker):
        assert "secret" not in str(program.command)
    assert api.environment["DATABASE_URL"] == "postgresql://u:secret@/d"
