"""The whole service as processes of their own: servers, API processes on one socket, workers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from app.embedded import sockets, up
from app.embedded.postgres import Postgres
from app.embedded.valkey import Valkey
from app.settings import Settings
from benchmarks.servers import proportional

QUIET = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "warning")


class Service:
    """Starts with everything up; `close` ends all of it."""

    def __init__(self, folder: Path, apis: int, workers: int, **settings: str) -> None:
        self._folder = folder
        self._sockets = sockets.create(folder / "sockets")
        self._postgres = Postgres(folder / "postgres", self._sockets, log=folder / "postgres.log")
        self._valkey = Valkey(folder / "valkey", self._sockets, log=folder / "valkey.log")
        url, redis_url = str(self._postgres.start()), str(self._valkey.start())
        self.settings = Settings(home=folder / "home", database_url=url, redis_url=redis_url)
        up.prepare(self.settings)
        self.database = url.replace("+psycopg", "")
        self.key = self.settings.key_file.read_text().strip()
        self._environment = {
            **os.environ,
            "FINETUNED_HOME": str(folder / "home"),
            "DATABASE_URL": url,
            "REDIS_URL": redis_url,
            "FINETUNED_LOG_LEVEL": "warning",
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        self._programs: dict[str, subprocess.Popen[bytes]] = {}
        self._listeners: list[socket.socket] = []
        self.port = self.serve("app.embedded.api", apis)
        for number in range(workers):
            celery = [
                "celery",
                "-A",
                "worker.main",
                "worker",
                "-P",
                "threads",
                "-c",
                "1",
                "-Q",
                "gpu",
                *QUIET,
            ]
            self._start(f"worker-{number}", celery)
        alive = "SELECT count(*) FROM workers"
        self.wait(lambda: self.rows(alive)[0][0] >= workers, "the workers")

    def serve(self, module: str, processes: int) -> int:
        """Processes that share one listening socket; its port."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._listeners.append(listener)
        port: int = listener.getsockname()[1]
        name = module.rpartition(".")[2]
        for number in range(processes):
            self._start(f"{name}-{number}", [module, str(listener.fileno())], listener.fileno())
        self.wait(lambda: answers(port), name)
        return port

    def _start(self, name: str, arguments: list[str], *descriptors: int) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._programs[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=self._environment,
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, kind: str) -> None:
        """End the programs whose name begins so, as they like it best."""
        chosen = [name for name in self._programs if name.startswith(kind)]
        for name in chosen:
            self._programs[name].send_signal(signal.SIGTERM)
        for name in chosen:
            self._programs.pop(name).wait(60)

    def memory(self, kind: str) -> int:
        """Bytes of those programs; memory that they share counts once."""
        return sum(proportional(p.pid) for name, p in self._programs.items() if name.startswith(kind))

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database, autocommit=True) as connection:
            return connection.execute(query.encode(), values).fetchall()

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
        """Raises TimeoutError; the logs lie in the folder."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-2000:] for path in self._folder.glob("*.log"))
                raise TimeoutError(f"{what}: not within {seconds:.0f} s\n{logs}")
            time.sleep(0.1)

    def close(self) -> None:
        for program in self._programs.values():
            program.terminate()
        for program in self._programs.values():
            try:
                program.wait(30)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        self._valkey.stop()
        self._postgres.stop()
        for listener in self._listeners:
            listener.close()
        sockets.remove(self._folder / "sockets")
        shutil.rmtree(self._folder / "postgres", ignore_errors=True)


def answers(port: int) -> bool:
    """Whether somebody accepts and answers, whatever it is."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return connection.recv(8) == b"HTTP/1.1"
    except OSError:
        return False
