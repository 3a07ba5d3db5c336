"""Real servers for every test: one PostgreSQL and one Valkey a session, and a database a test for the asking.

postgres_url        the superuser's URL of the session's server
database_url        a database of its own for this test, migrated, as the programs see it
module_database_url the same, shared by the tests of one file
empty_database_url  a database of its own for this test, with nothing in it
redis_url           the session's Valkey, shared: keep to keys of your own
empty_redis_url     the same, emptied before the test
shared_stack        the whole service, once for all files that neither stop it nor count what is in it
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
import redis
from psycopg import sql

from app import database
from app.embedded import sockets
from app.embedded.postgres import ROLE, Postgres
from app.embedded.valkey import Valkey
from app.settings import Settings
from app.tiny import weights
from tests.flow.stack import QUICK, Stack, running
from tests.order import Order

NewDatabase = Callable[[str], str]
# By copying files: twice as quick as through the log, where nothing has to last.
COPY = "CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY FILE_COPY"
# Everybody gets the same examples, and a machine that is busy for 200 ms is no counterexample.
hypothesis.settings.load_profile("ci")


@pytest.hookimpl(optionalhook=True)  # where the tests run side by side
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Order:
    return Order(config, log)


@pytest.fixture(scope="session", autouse=True)
def _drawn_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """To draw the built-in model's million weights takes half a second, and each home has its own."""
    draw, path = weights.write, tmp_path_factory.mktemp("weights") / "drawn"

    @cache
    def drawn(tensors: tuple[tuple[str, weights.Shape], ...], layers: int, seed: int) -> bytes:
        draw(path, list(tensors), layers, seed)
        return path.read_bytes()

    def write(target: Path, tensors: list[tuple[str, weights.Shape]], layers: int, seed: int) -> None:
        target.write_bytes(drawn(tuple(tensors), layers, seed))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "write", write)
        yield


@pytest.fixture(scope="session")
def socket_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    record = tmp_path_factory.mktemp("sockets") / "sockets"
    yield sockets.create(record)
    sockets.remove(record)


@pytest.fixture(scope="session")
def postgres(socket_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("postgres"), socket_folder, durable=False)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgres_url(postgres: Postgres) -> str:
    return postgres.url("postgres")


@pytest.fixture(scope="session")
def redis_url(socket_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Valkey(tmp_path_factory.mktemp("valkey"), socket_folder)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def empty_redis_url(redis_url: str) -> str:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    return redis_url


@pytest.fixture(scope="session")
def new_database(postgres: Postgres) -> NewDatabase:
    """Makes a database like the named one (`template0` is empty) and gives its URL."""
    numbers = count(1)

    def create(template: str) -> str:
        name = f"test_{next(numbers)}"
        with psycopg.connect(postgres.url("postgres").replace("+psycopg", ""), autocommit=True) as connection:
            names = [sql.Identifier(word) for word in (name, ROLE, template)]
            connection.execute(sql.SQL(COPY).format(*names))
        return postgres.url(name, ROLE)

    return create


@pytest.fixture(scope="session")
def migrated_template(new_database: NewDatabase) -> str:
    """The name of a database with every migration applied, to be copied in milliseconds."""
    url = new_database("template0")
    database.migrate(Settings(database_url=url))
    return url.rpartition("@/")[2].partition("?")[0]


@pytest.fixture
def empty_database_url(new_database: NewDatabase) -> str:
    return new_database("template0")


@pytest.fixture
def database_url(new_database: NewDatabase, migrated_template: str) -> str:
    return new_database(migrated_template)


@pytest.fixture(scope="module")
def module_database_url(new_database: NewDatabase, migrated_template: str) -> str:
    return new_database(migrated_template)


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {**QUICK, "FINETUNED_WEBHOOK_ALLOW": "127.0.0.0/8"}
    with running(tmp_path_factory.mktemp("home"), settings) as stack:
        yield stack
