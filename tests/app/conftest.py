"""A real API on a free port, with a real database and broker, and the official SDK to talk to it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from openai import OpenAI

from app.apikey import make_key
from app.auth import ensure_first_key, store_key
from app.database import WorkerDatabase
from app.main import create_app
from app.settings import Settings


@dataclass
class Api:
    """The address and two people's keys."""

    url: str
    key: str
    stranger_key: str
    settings: Settings

    def client(self, key: str | None = None) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0)

    def http(self, key: str | None = None, url: str | None = None) -> httpx2.Client:
        headers = {"authorization": f"Bearer {key or self.key}"}
        return httpx2.Client(base_url=url or self.url, headers=headers, timeout=30)


@contextmanager
def serving(settings: Settings, port: int = 0) -> Iterator[str]:
    """One API process, as far as the others can tell; its address."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        config = uvicorn.Config(
            create_app(settings), log_config=None, lifespan="on", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def more_settings() -> dict[str, Any]:
    """What a file's API is to have beside the usual; files define their own."""
    return {}


@pytest.fixture(scope="module")
def api(
    module_database_url: str,
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
    more_settings: dict[str, Any],
) -> Iterator[Api]:
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        database_url=module_database_url,
        redis_url=redis_url,
        min_free_bytes=0,
        **more_settings,
    )
    key = ensure_first_key(settings).read_text().strip()
    stranger = make_key()
    database = WorkerDatabase(settings)
    with database.transaction() as session:
        store_key(session, stranger, owner="stranger", name="stranger")
    database.close()
    with serving(settings) as url:
        yield Api(url, key, stranger, settings)


@pytest.fixture
def client(api: Api) -> Iterator[OpenAI]:
    with api.client() as client:
        yield client


@pytest.fixture
def http(api: Api) -> Iterator[httpx2.Client]:
    with api.http() as client:
        yield client


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    return path
