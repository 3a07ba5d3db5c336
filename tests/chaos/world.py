"""The whole service as processes of its own, and the ways to hurt it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import redis
from psycopg.rows import dict_row

from app.embedded import sockets, up
from app.embedded.postgres import Postgres
from app.embedded.valkey import Valkey
from app.settings import Settings
from tests.chaos import history
from tests.chaos.proxy import Proxy

LEASE, HEARTBEAT, GRACE, SWEEP, REDISPATCH = 1.5, 0.3, 0.5, 0.1, 1.0
JOBS = "/v1/fine_tuning/jobs"
ENDED = history.ENDED


class World:
    """Servers, API processes on one socket, workers. What dies is brought back by `heal`, as by a keeper."""

    def __init__(self, folder: Path, apis: int, workers: int, entry: str, **settings: str) -> None:
        self.folder, self.entry = folder, entry
        folder.mkdir(parents=True, exist_ok=True)
        self.sockets = sockets.create(folder / "sockets")
        self.postgres = Postgres(folder / "postgres", self.sockets, log=folder / "postgres.log")
        self.valkey = Valkey(folder / "valkey", self.sockets, log=folder / "valkey.log")
        url = str(self.postgres.start())
        self.broker = str(self.valkey.start())
        through_proxy = self.broker.replace("valkey.sock", "proxy.sock")
        self.proxy = Proxy(self.sockets / "proxy.sock", self.sockets / "valkey.sock")
        self.settings = Settings(home=folder / "home", database_url=url, redis_url=through_proxy)
        up.prepare(self.settings)
        self.database = url.replace("+psycopg", "")
        history.install(self.database)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.key = self.settings.key_file.read_text().strip()
        self.client = httpx2.Client(
            base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=20
        )
        self.environment = {
            **os.environ,
            "FINETUNED_HOME": str(folder / "home"),
            "DATABASE_URL": url,
            "REDIS_URL": through_proxy,
            "FINETUNED_LEASE": str(LEASE),
            "FINETUNED_HEARTBEAT": str(HEARTBEAT),
            "FINETUNED_LEASE_GRACE": str(GRACE),
            "FINETUNED_SWEEP_INTERVAL": str(SWEEP),
            "FINETUNED_REDISPATCH": str(REDISPATCH),
            "FINETUNED_STOP_GRACE": "2",
            "FINETUNED_STALL": "30",
            "FINETUNED_RETRY_DELAY": "0.2",
            "FINETUNED_MAX_ATTEMPTS": "50",
            "FINETUNED_MIN_FREE_BYTES": "0",
            "FINETUNED_LOG_LEVEL": "warning",
            "OMP_NUM_THREADS": "1",
            **settings,
        }
        self.programs: dict[str, subprocess.Popen[bytes]] = {}
        self.wanted = [f"api-{n}" for n in range(apis)] + [f"worker-{n}" for n in range(workers)]
        self.heal()
        self.wait(lambda: self.get("/readyz").json() == {"status": "ok"}, "the API")
        self.wait(lambda: len(self.rows("SELECT 1 AS x FROM workers")) >= workers, "the workers")

    def _start(self, name: str) -> None:
        if name.startswith("api"):
            command = ["-m", "app.embedded.api", str(self.listener.fileno())]
        else:
            options = "worker -P threads -c 1 -Q gpu --loglevel warning"
            quiet = "--without-gossip --without-mingle --without-heartbeat"
            command = ["-m", "celery", "-A", self.entry, *options.split(), *quiet.split()]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.programs[name] = subprocess.Popen(
                [sys.executable, *command],
                env=self.environment,
                pass_fds=[self.listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def heal(self) -> None:
        """Start again what is dead."""
        if not self.postgres.process.alive:
            self.postgres.start()
        if not self.valkey.process.alive:
            self.valkey.start()
        for name in self.wanted:
            if name not in self.programs or self.programs[name].poll() is not None:
                self._start(name)

    def dismiss(self, *names: str) -> None:
        """End programs for good, as they like it best."""
        self.wanted = [name for name in self.wanted if name not in names]
        for name in names:
            self.kill(name, signal.SIGTERM)
        for name in names:
            self.programs.pop(name).wait(30)

    def calm(self) -> None:
        """No fault lasts, and no job."""
        self.proxy.swallow = False
        for program in self.programs.values():
            program.send_signal(signal.SIGCONT)
        self.heal()
        unended = "SELECT id FROM jobs WHERE status IN ('queued', 'running', 'paused')"
        self.wait(lambda: not [self.ask("cancel", row["id"]) for row in self.rows(unended)], "the end of all")

    def close(self) -> None:
        self.wanted = []
        for program in self.programs.values():
            program.send_signal(signal.SIGCONT)
            program.terminate()
        for program in self.programs.values():
            try:
                program.wait(10)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        self.client.close()
        self.valkey.stop()
        self.postgres.stop()
        self.listener.close()
        sockets.remove(self.folder / "sockets")

    # Looking

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = 60.0) -> float:
        """How long it took. Raises TimeoutError with the end of the logs."""
        began = time.monotonic()
        while True:
            try:
                if condition():
                    return time.monotonic() - began
            except (httpx2.HTTPError, psycopg.Error, ValueError):
                pass
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s; logs in {self.folder}")
            self.heal()
            time.sleep(0.05)

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        with psycopg.connect(self.database, row_factory=dict_row, autocommit=True) as connection:
            return connection.execute(query, values).fetchall()

    def status(self, job_id: str) -> str:
        return str(self.rows("SELECT status FROM jobs WHERE id = %s", job_id)[0]["status"])

    def step(self, job_id: str) -> int:
        return int(self.rows("SELECT step FROM jobs WHERE id = %s", job_id)[0]["step"])

    def epoch(self, job_id: str) -> int:
        return int(self.rows("SELECT epoch FROM jobs WHERE id = %s", job_id)[0]["epoch"])

    def trainers(self, name: str | None = None) -> list[int]:
        """Trainer processes of one worker, or all below this world's folder of jobs."""
        parents = {program.pid for key, program in self.programs.items() if name in (None, key)}
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) in parents and fields[0] != "Z":
                found.append(int(path.parent.name))
        return found

    def busy_worker(self, job_id: str) -> str | None:
        """The program that holds a job, by the process number in its worker's name."""
        rows = self.rows("SELECT worker FROM jobs WHERE id = %s AND status = 'running'", job_id)
        pid = int(rows[0]["worker"].rsplit("-", 2)[1]) if rows else 0
        return next((name for name, program in self.programs.items() if program.pid == pid), None)

    # Asking

    def get(self, path: str) -> httpx2.Response:
        return self.client.get(path)

    def upload(self, **script: Any) -> str:
        """A file whose only row is a stand-in trainer's script."""
        text = json.dumps({"text": json.dumps(script)})
        answer = self.client.post(
            "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("script.jsonl", text + "\n")}
        )
        answer.raise_for_status()
        return str(answer.json()["id"])

    def create(self, file_id: str, key: str | None = None, **more: Any) -> str:
        headers = {"idempotency-key": key} if key else {}
        body = {"model": "tiny-gpt2", "training_file": file_id, **more}
        answer = self.client.post(JOBS, json=body, headers=headers)
        answer.raise_for_status()
        return str(answer.json()["id"])

    def ask(self, verb: str, job_id: str) -> int:
        return self.client.post(f"{JOBS}/{job_id}/{verb}").status_code

    # Hurting

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        self.programs[name].send_signal(number)

    def stop_postgres(self) -> None:
        self.postgres.process.send(signal.SIGQUIT)  # immediate
        while self.postgres.process.alive:
            time.sleep(0.01)

    def flush_redis(self) -> None:
        with redis.Redis.from_url(self.broker) as client:
            client.flushall()

    def push_garbage(self, text: bytes) -> None:
        with redis.Redis.from_url(self.broker) as client:
            client.lpush("ft:gpu", text)
