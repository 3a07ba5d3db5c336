"""The wheels' servers as we start them: what they keep, and whom they let in."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import kombu
import psycopg
import pytest
import redis

from app.embedded import sockets
from app.embedded.postgres import ROLE, Postgres
from app.embedded.process import EmbeddedError, Process
from app.embedded.valkey import Valkey
from app.queue import broker_url
from app.settings import Settings

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
NewPostgres = Callable[..., Postgres]


def connect(url: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of mode 0700, as root's is on many machines."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield sockets.create(tmp_path / "record")
    sockets.remove(tmp_path / "record")


@pytest.fixture
def new_postgres(home: Path, folder: Path) -> Iterator[NewPostgres]:
    """Makes servers on one and the same data folder; stopped at the end."""
    made = []

    def make(identity: str | None = None, durable: bool = False) -> Postgres:
        made.append(Postgres(home / "postgres", folder, durable=durable, identity=identity))
        return made[-1]

    yield make
    for server in made:
        server.stop()


def kill(server: Postgres | Valkey) -> None:
    """As the kernel or an impatient person would: postgres' children notice by themselves."""
    assert server.process.pid is not None
    os.kill(server.process.pid, signal.SIGKILL)
    while server.process.alive:
        time.sleep(0.01)


def reaches(path: Path, user: int) -> bool:
    """Whether a process of this user can connect to the socket."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        with socket.socket(socket.AF_UNIX) as connection:
            os._exit(0 if connection.connect_ex(str(path)) == 0 else 1)
    return os.waitpid(child, 0)[1] == 0


def test_the_role_of_the_programs_owns_its_database_and_nothing_else(empty_database_url: str) -> None:
    with connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE rows (id int)")
        for forbidden in (
            "COPY rows FROM PROGRAM 'id'",
            "SELECT pg_read_file('/etc/passwd')",
            "CREATE ROLE x",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden)


def test_every_connection_needs_the_password_on_the_socket_too(postgres: Postgres) -> None:
    with connect(postgres.url("postgres")) as connection:
        methods = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
    assert methods == [("scram-sha-256",)]
    url = postgres.url("postgres", ROLE)
    for password in ("", ":wrong"):
        with pytest.raises(psycopg.OperationalError, match=r"password"):
            connect(url.replace(url[url.index(ROLE) + len(ROLE) : url.index("@")], password))


def test_the_queue_needs_the_password_on_its_socket_too(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()
    bare = "unix://" + redis_url.partition("@")[2]
    with redis.Redis.from_url(bare) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    # What reads our settings may not lose it on the way to Celery.
    assert broker_url(Settings(redis_url=redis_url)).partition("://")[2] == redis_url.partition("://")[2]


def test_passwords_are_in_no_argument_list_and_in_no_log(
    new_postgres: NewPostgres, home: Path, folder: Path
) -> None:
    server, broker = new_postgres(), Valkey(home / "valkey", folder)
    server.start()
    try:
        broker.start()
        _look_for_passwords(home)
    finally:
        broker.stop()


def _look_for_passwords(home: Path) -> None:
    files = list(home.glob("*/*.password"))
    assert {file.stem for file in files} == {"postgres", ROLE, "valkey"}
    secrets = [file.read_bytes() for file in files]
    for file in [*files, home / "valkey" / "valkey.conf"]:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    places = [*Path("/proc").glob("[0-9]*/cmdline"), *home.rglob("*.log")]
    for place in places:
        try:
            text = place.read_bytes()
        except OSError:  # the process has ended meanwhile
            continue
        assert not any(secret in text for secret in secrets), place


@as_root
@pytest.mark.parametrize("name", [".s.PGSQL.5432", "valkey.sock"])
@pytest.mark.usefixtures("postgres_url", "redis_url")
def test_another_user_of_the_machine_cannot_connect(name: str, socket_folder: Path) -> None:
    assert reaches(socket_folder / name, os.getuid())
    assert not reaches(socket_folder / name, NOBODY)


@pytest.mark.usefixtures("postgres_url", "redis_url")
def test_the_sockets_and_their_folder_are_private_and_there_is_no_port(
    socket_folder: Path, postgres_url: str, redis_url: str
) -> None:
    for path in (socket_folder, socket_folder / ".s.PGSQL.5432", socket_folder / "valkey.sock"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    with connect(postgres_url) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
    with redis.Redis.from_url(redis_url) as client:
        assert client.config_get("port") == {"port": "0"}


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(None, id="chosen"),
        pytest.param(f"namespace:{NOBODY}", id="namespace", marks=as_root),
        pytest.param(f"account:{NOBODY}:{NOBODY}", id="account", marks=as_root),
    ],
)
def test_it_works_below_a_private_home_and_changes_nothing_there(
    new_postgres: NewPostgres, home: Path, identity: str | None
) -> None:
    parents = [home, *home.parents]
    before = [(path.stat().st_mode, path.stat().st_uid) for path in parents]
    server = new_postgres(identity)
    url = server.start()
    with connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS id")
    server.stop()
    with connect(server.start()) as connection:
        assert connection.execute("SELECT id FROM kept").fetchone() == (7,)
    assert [(path.stat().st_mode, path.stat().st_uid) for path in parents] == before
    assert [path.name for path in home.iterdir()] == ["postgres"]
    for path in (home / "postgres").iterdir():
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@as_root
@pytest.mark.parametrize(
    ("identity", "rights"), [(f"namespace:{NOBODY}", 0), (f"account:{NOBODY}:{NOBODY}", 1 << 1)]
)
def test_started_by_root_the_server_has_shed_the_rights_of_root(
    new_postgres: NewPostgres, identity: str, rights: int
) -> None:
    server = new_postgres(identity)
    server.start()
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t") for line in lines if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == rights
    assert status["NoNewPrivs"] == "1"


def test_rows_survive_a_kill_and_a_foreign_process_under_the_old_number(
    new_postgres: NewPostgres, home: Path
) -> None:
    server = new_postgres(durable=True)
    with connect(server.start()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS id")
    kill(server)
    lock = home / "postgres" / "cluster" / "postmaster.pid"
    _, rest = lock.read_text().split("\n", 1)
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        lock.write_text(f"{bystander.pid}\n{rest}")
        with connect(new_postgres(durable=True).start()) as connection:
            assert connection.execute("SELECT id FROM kept").fetchone() == (7,)
    finally:
        bystander.communicate(b"\n")


def test_a_first_start_that_was_killed_half_way_is_begun_anew(new_postgres: NewPostgres, home: Path) -> None:
    unfinished = home / "postgres" / "cluster.new"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with connect(new_postgres().start()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not unfinished.exists()


def test_the_data_of_another_version_is_refused_with_what_to_do(
    new_postgres: NewPostgres, home: Path
) -> None:
    cluster = home / "postgres" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedError, match=r"written by PostgreSQL 17 and this is PostgreSQL 18: dump it"):
        new_postgres().start()


@as_root
def test_the_data_of_another_user_is_refused_with_what_to_do(new_postgres: NewPostgres, home: Path) -> None:
    cluster = home / "postgres" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("18\n")
    os.chown(cluster, 1234, 1234)
    with pytest.raises(
        EmbeddedError, match=r"belongs to user id 1234.*start finetuned as the user who made it"
    ):
        new_postgres().start()


def test_messages_survive_a_kill(tmp_path: Path, folder: Path) -> None:
    server = Valkey(tmp_path / 'a home \\ of "mine"' / "valkey", folder)
    try:
        with redis.Redis.from_url(server.start()) as client:
            client.lpush("gpu", "one", "two")
        kill(server)
        with redis.Redis.from_url(server.start()) as client:
            assert client.llen("gpu") == 2
    finally:
        server.stop()


def test_the_broker_drops_no_message_and_celery_can_reach_it(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    with kombu.Connection(broker_url(Settings(redis_url=redis_url))) as connection:
        queue = connection.SimpleQueue("embedded-test")
        queue.put("knock")
        message = queue.get(timeout=60)
        message.ack()
        assert message.payload == "knock"
        queue.close()


def test_a_server_is_not_started_by_a_thread_whose_end_would_end_it(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            Process("true", ["/bin/true"], log=tmp_path / "log").start()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert [str(error) for error in errors] == ["true must be started by the main thread"]


def test_a_socket_folder_is_ours_alone_and_never_somebody_elses(tmp_path: Path) -> None:
    record = tmp_path / "record"
    first = sockets.create(record)
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    second = sockets.create(record)
    assert not first.exists(), "what a killed `up` left is removed by the next"
    open_to_all = tmp_path / "finetuned-open"
    open_to_all.mkdir(mode=0o755)
    record.write_text(str(open_to_all))
    sockets.remove(record)
    assert open_to_all.exists(), "a folder that others can enter is none that we made"
    second.rmdir()
