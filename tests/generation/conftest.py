"""The tiny model as a folder, in the generator and in transformers alone; an engine; the whole service."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import uvicorn
from openai import OpenAI
from transformers import AutoModelForCausalLM

from app.auth import ensure_first_key
from app.main import create_app
from app.settings import Settings
from tests.generation.tinymodel import make_model
from worker.generation.engine import Stepper
from worker.generation.model import Model, load
from worker.generation.server import create_app as generator_app


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return load(folder, "tiny", torch.device("cpu"))


@pytest.fixture(scope="session")
def reference(folder: Path) -> Any:
    """The same folder as transformers alone loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@pytest.fixture(scope="module")
def engine() -> Iterator[Stepper]:
    engine = Stepper()
    yield engine
    engine.close()


@dataclass
class Service:
    """A real API and a real generator process, which the test may kill and start again."""

    url: str
    key: str
    settings: Settings
    generator: subprocess.Popen[bytes] | None = None

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60)

    def http(self) -> httpx2.Client:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60)

    def health(self) -> Any:
        """What the generator says of itself."""
        path = (self.settings.generator_url or "").removeprefix("unix:")
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=path)) as client:
            return client.get("http://generator/health").json()

    def start_generator(self) -> None:
        environment = {
            "FINETUNED_HOME": str(self.settings.home),
            "FINETUNED_BASE_MODELS": str(self.settings.base_models),
            "FINETUNED_GENERATOR_QUEUE": str(self.settings.generator_queue),
            "GENERATOR_URL": str(self.settings.generator_url),
            "FINETUNED_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "worker.generation"]
        self.generator = subprocess.Popen(command, env={**os.environ, **environment})
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline and self.generator.poll() is None:
            try:
                self.health()
                return
            except httpx2.TransportError:
                time.sleep(0.05)
        raise TimeoutError("the generator does not answer")

    def kill_generator(self, with_signal: signal.Signals = signal.SIGKILL) -> int:
        if self.generator is None:
            return 0
        self.generator.send_signal(with_signal)
        return self.generator.wait(60)


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                thread.join(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@dataclass
class Member:
    """A generator in this process."""

    url: str
    server: uvicorn.Server
    thread: threading.Thread

    def health(self) -> Any:
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=self.url.removeprefix("unix:"))) as client:
            return client.get("http://generator/health").json()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@contextmanager
def generating(path: Path, models: Path, queue: int) -> Iterator[Member]:
    def locate(source: str) -> Path:
        return models / source.removeprefix("folder:")

    app = generator_app(locate, 2**30, queue, device=torch.device("cpu"))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    with socket.socket(socket.AF_UNIX) as listener:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen()  # who comes before it has started waits
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        member = Member(f"unix:{path}", server, thread)
        try:
            yield member
        finally:
            member.stop()


@pytest.fixture(scope="module")
def service(
    folder: Path,
    module_database_url: str,
    redis_url: str,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        database_url=module_database_url,
        redis_url=redis_url,
        generator_url=f"unix:{socket_folder / 'generator.sock'}",
        generator_queue=40,
        base_models=folder.parent,
        min_free_bytes=0,
    )
    key = ensure_first_key(settings).read_text().strip()
    with serving(settings) as url:
        service = Service(url, key, settings)
        try:
            service.start_generator()
            yield service
        finally:
            service.kill_generator()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[OpenAI]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def nearby(
    folder: Path,
    module_database_url: str,
    redis_url: str,
    socket_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Service]:
    """As `service`, with the generator in this process: for tests that do not kill it, ready at once."""
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        database_url=module_database_url,
        redis_url=redis_url,
        generator_url=f"unix:{socket_folder / 'nearby.sock'}",
        base_models=folder.parent,
        min_free_bytes=0,
    )
    key = ensure_first_key(settings).read_text().strip()
    with generating(socket_folder / "nearby.sock", folder.parent, queue=40), serving(settings) as url:
        yield Service(url, key, settings)
