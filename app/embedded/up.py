"""`finetuned up`: everything on one machine by one command, and nothing left behind when it ends."""

import fcntl
import ipaddress
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pydantic import SecretStr
from sqlalchemy.exc import ArgumentError, OperationalError

from app import auth, database
from app.embedded import logs, sockets
from app.embedded import programs as all_programs
from app.embedded.postgres import Postgres
from app.embedded.process import EmbeddedError
from app.embedded.programs import Program, Running
from app.embedded.supervisor import Say, Supervisor
from app.embedded.valkey import Valkey
from app.settings import Settings
from app.storage import StoreAway, StoreRefused, open_store

READY_LIMIT = 120.0  # seconds
BIND_LIMIT = 2.0  # seconds; the API of an `up` that was killed may hold the port for a moment longer
SECOND_CTRL_C = 1.0  # seconds; less is the same key press arriving by two ways
BACKLOG = 2048
CONNECT_LIMIT = 5.0  # seconds

Choose = Callable[[Settings, int, bool], list[Program]]
Prepare = Callable[[Settings], None]


def prepare(settings: Settings) -> None:
    """Bring the database to the newest schema, and make the first API key.

    Raises EmbeddedError for an object store or a database that cannot be used, or a file `key` that holds no
    key.
    """
    try:
        open_store(settings).probe()
    except StoreRefused as error:
        raise EmbeddedError(str(error)) from error
    except StoreAway:
        pass  # the API waits for it, and /readyz tells
    try:
        database.migrate(settings)
        auth.ensure_first_key(settings)
    except auth.BadKeyFile as error:
        raise EmbeddedError(str(error)) from error
    except ArgumentError as error:  # whose text may be the URL, and so a password
        raise EmbeddedError("DATABASE_URL is no postgresql://user:password@host/database.") from error
    except OperationalError as error:
        why = str(error.orig).partition("\n")[0]
        raise EmbeddedError(f"The database of DATABASE_URL cannot be used: {why}") from error


def up(
    settings: Settings, say: Say, choose: Choose = all_programs.programs, prepare: Prepare = prepare
) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP. Raises EmbeddedError where something keeps it from running."""
    os.umask(0o077)
    check_loopback(settings.host)
    make_home(settings.home)
    log_folder, record = settings.home / "logs", settings.home / "sockets"
    with only_one(settings.home), listening(settings) as listener:
        logs.rotate(log_folder)
        supervisor = Supervisor(log_folder, say)
        interrupts = Interrupts(supervisor)
        try:
            port = listener.getsockname()[1]
            settings = settings.model_copy(update={"port": port})
            settings, own_generator = start_servers(settings, supervisor, sockets.create(record), log_folder)
            prepare(settings)
            api, *others = choose(settings, listener.fileno(), own_generator)
            supervisor.start(Running(api, log_folder))
            wait_until_ready(settings, supervisor)
            # Only now: loading torch would take the processor from the API for seconds.
            for program in others:
                supervisor.start(Running(program, log_folder))
            announce(settings, say)
            while True:
                supervisor.watch()
        except KeyboardInterrupt:
            say("Stopping; a job that runs saves a checkpoint first. Ctrl-C again to wait no longer.")
        finally:
            interrupts.stopping = interrupts.stopping or time.monotonic()
            settings.address_file.unlink(missing_ok=True)
            supervisor.stop()
            sockets.remove(record)
    say("Stopped.")


def make_home(home: Path) -> None:
    """Raises EmbeddedError where it cannot be made or written to."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        (home / "lock").touch()
    except OSError as error:
        raise EmbeddedError(
            f"The home folder {home} cannot be used ({error.strerror}): choose another with --home or"
            " FINETUNED_HOME, or have it belong to you."
        ) from error


class Interrupts:
    """The first signal unwinds `up` wherever it is; a second Ctrl-C ends the waiting."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.stopping: float | None = None  # since when, on the monotonic clock
        self._supervisor = supervisor
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._arrived)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.stopping is None:
            self.stopping = time.monotonic()
            raise KeyboardInterrupt
        if number == signal.SIGINT and time.monotonic() - self.stopping > SECOND_CTRL_C:
            self._supervisor.hurry()


def start_servers(
    settings: Settings, supervisor: Supervisor, folder: Path, log_folder: Path
) -> tuple[Settings, bool]:
    """Start what no URL was given for. The settings with every URL, and whether the generator is ours."""
    update: dict[str, object] = {}
    if settings.database_url is None:
        postgres = Postgres(settings.home / "postgres", folder, log=log_folder / "postgres.log")
        update["database_url"] = SecretStr(str(supervisor.start(postgres)))
    if settings.redis_url is None:
        valkey = Valkey(settings.home / "valkey", folder, log=log_folder / "valkey.log")
        update["redis_url"] = SecretStr(str(supervisor.start(valkey)))
    if settings.generator_url is None:
        update["generator_url"] = f"unix:{folder / 'generator.sock'}"
    return settings.model_copy(update=update), settings.generator_url is None


def check_loopback(host: str) -> None:
    """Raises EmbeddedError for an address that other machines could reach."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise EmbeddedError(
            f"finetuned up listens on this machine only, and {host} is no loopback address: "
            f"leave --host out, and let a reverse proxy with TLS serve other machines."
        )


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """One `up` for a home. The kernel lets go of the lock however we end."""
    with (home / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise EmbeddedError(
                f"finetuned is already up in {home} (process {file.read().strip()}): "
                f"stop it first, or choose another --home."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """The API's socket. Raises EmbeddedError where the port is taken or may not be used."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    deadline = time.monotonic() + BIND_LIMIT
    while True:
        try:
            listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                why = os.strerror(error.errno or 0)
                raise EmbeddedError(
                    f"Port {settings.port} of {settings.host} cannot be used ({why}): "
                    f"choose another with --port, or a free one with --port 0."
                ) from error
            time.sleep(0.1)
    with listener:
        yield listener


def wait_until_ready(settings: Settings, supervisor: Supervisor) -> None:
    """Raises EmbeddedError where a program keeps dying, or the API is not ready in time."""
    deadline = time.monotonic() + READY_LIMIT
    for ready in readiness(settings):
        if ready:
            return
        supervisor.watch()
        supervisor.despair()
        if time.monotonic() > deadline:
            raise EmbeddedError(
                f"The API is not ready after {READY_LIMIT:.0f} s; the logs are in {settings.home / 'logs'}."
            )


def readiness(settings: Settings) -> Iterator[bool]:
    """Whether /readyz has answered 200, without ever waiting for it.

    A request made before the API runs waits in our listening socket's queue and is its first one.
    """
    request = f"GET /readyz HTTP/1.1\r\nHost: {settings.host}\r\nConnection: close\r\n\r\n"
    while True:
        with socket.create_connection((settings.host, settings.port), CONNECT_LIMIT) as connection:
            connection.sendall(request.encode())
            while not select.select([connection], [], [], 0)[0]:
                yield False
            try:
                status = connection.recv(64).split()[1:2]
            except ConnectionResetError:  # the API died over it
                status = []
        yield status == [b"200"]


def announce(settings: Settings, say: Say) -> None:
    """On the terminal for a person, in `<home>/address` for a program."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{settings.port}"
    written = settings.address_file.with_suffix(".new")
    written.write_text(f"{address}\n")
    written.rename(settings.address_file)
    # A person clicks and is in: behind the # it never leaves the browser, and the page takes it out of the
    # address at once. Where the output is kept, in a unit's journal, no key is written.
    entrance = f"#key={settings.key_file.read_text().strip()}" if sys.stdout.isatty() else ""
    say(
        f"finetuned is ready at {address}\n"
        f"  dashboard      {address}/{entrance}\n"
        f"  base URL       {address}/v1\n"
        f"  API reference  {address}/docs\n"
        f"  API key        {settings.key_file}\n"
        f"  data           {settings.home}\n"
        f"Ctrl-C stops it; started again, it goes on where it was."
    )
