"""Everybody who wants something of the service at once: who sends jobs, polls them and listens to them."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from benchmarks.polling import PATIENCE, Polled, get, poll
from benchmarks.service import Service

JOBS = "/v1/fine_tuning/jobs"
STEMS = ("soup", "sauce", "tea", "stew")
ROWS = "".join(
    json.dumps({"text": f"Stir the {stem} for {n} minutes. Serve it warm."}) + "\n"
    for stem in STEMS
    for n in (2, 5, 7, 9)
)
SENDERS = 24
OWNERS = 8
POLLED = 1_000  # of the jobs sent first: those that are trained, and many that wait


@dataclass(frozen=True)
class Size:
    """How much of everything; seconds of one turn of the comparison, and turns."""

    jobs: int
    trained: int
    pollers: int
    listeners: int
    metrics: int
    turn: float
    turns: int
    minutes: float


class Crowd:
    """Everybody who wants something of the service at once, and what they were told."""

    def __init__(self, service: Service, size: Size) -> None:
        self._service, self._size = service, size
        self.keys: list[str] = []
        self.accepted: dict[str, str] = {}  # by the key with which it was sent
        self.refused: Counter[str] = Counter()
        self.heard = self.heard_twice = 0  # messages of event streams
        self.polled = Polled()
        self.memory: list[int] = []
        self._ids: list[str] = []

    def prepare(self) -> None:
        """Owners with their keys and files; a million rows of another job's metrics."""
        for number in range(OWNERS):
            made = self._call(
                "POST", "/v1/api_keys", self._service.key, {"name": "n", "owner": f"owner-{number}"}
            )
            self.keys.append(made["value"])
        self.files = [self._upload(key) for key in self.keys]
        owner = self.keys[0]
        job = {"model": "tiny-gpt2", "training_file": self.files[0]}
        self.ballast = self._call("POST", JOBS, owner, job)["id"]
        self._call("POST", f"{JOBS}/{self.ballast}/cancel", owner)
        self._service.rows(
            "INSERT INTO metrics (job_id, step, epoch, loss, tokens) SELECT %s, n, 1, 1.0, 8"
            " FROM generate_series(1, %s) n RETURNING 0",
            self.ballast,
            self._size.metrics,
        )

    def _call(self, method: str, path: str, key: str, body: Any = None) -> Any:
        status, answer = asyncio.run(ask(self._service.port, method, path, key, body))
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status} {answer[:500]!r}")
        return json.loads(answer)

    def _upload(self, key: str) -> str:
        form = (
            b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b\r\n'
            b'Content-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
            + ROWS.encode()
            + b"\r\n--b--\r\n"
        )
        status, answer = asyncio.run(
            ask(self._service.port, "POST", "/v1/files", key, form, "multipart/form-data; boundary=b")
        )
        if status != 200:
            raise RuntimeError(f"upload: {status} {answer[:500]!r}")
        return str(json.loads(answer)["id"])

    async def run(self) -> None:
        """Until all are sent and as many are trained as should be, or time is over."""
        # What is left is for the comparison and the audit, which take a minute and a half at full size.
        self._until = time.monotonic() + self._size.minutes * 60 * 0.85
        self._done = asyncio.Event()
        numbers = iter(range(self._size.jobs))
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._watch())
            listening = [tasks.create_task(self._listen()) for _ in range(self._size.listeners)]
            polling = tasks.create_task(self._poll())
            async with asyncio.TaskGroup() as sending:
                for _ in range(SENDERS):
                    sending.create_task(self._send(numbers))
            self.sent_after = time.monotonic()
            await watch
            polling.cancel()
            for listener in listening:
                listener.cancel()

    async def _send(self, numbers: Iterator[int]) -> None:
        for number in numbers:
            owner = number % OWNERS
            body = {
                "model": "tiny-gpt2",
                "training_file": self.files[owner],
                "hyperparameters": {"max_steps": 1 + number % 2, "save_total_limit": 1},
                "priority": "low" if number % 5 == 0 else "normal",
                "metadata": {"number": str(number)},
            }
            for wait in (1, 2, 4, 8):
                # The same key with each try: an answer that was lost makes no second job.
                once = {"Idempotency-Key": str(number)}
                status, answer = await ask(
                    self._service.port, "POST", JOBS, self.keys[owner], body, headers=once
                )
                if status == 200:
                    self.accepted[json.loads(answer)["id"]] = self.keys[owner]
                    break
                self.refused[str(status)] += 1
                await asyncio.sleep(wait)

    async def _poll(self) -> None:
        def request() -> bytes:
            if not self.accepted:
                return get(f"{JOBS}/{self.ballast}", self.keys[0])
            job_id = random.choice(self._known())  # no secret
            return get(f"{JOBS}/{job_id}", self.accepted[job_id])

        while True:
            found = await poll(self._service.port, request, self._size.pollers, 10, pause=1.0)
            self.polled.seconds += found.seconds
            self.polled.statuses += found.statuses

    def _known(self) -> list[str]:
        """Ids to poll: those sent first, which are the ones that run and end, and some of the others."""
        if len(self._ids) < min(POLLED, len(self.accepted)):
            self._ids = list(self.accepted)[:POLLED]
        return self._ids

    async def _listen(self) -> None:
        """One stream after another, each to the end of its job."""
        while True:
            if not self.accepted:
                await asyncio.sleep(0.1)
                continue
            job_id = random.choice(list(self.accepted)[: 2 * self._size.trained])
            try:
                path = f"{JOBS}/{job_id}/events/stream"
                await self._hear(path, self.accepted[job_id])
            except (OSError, asyncio.IncompleteReadError):
                self.refused["stream"] += 1
                await asyncio.sleep(1)

    async def _hear(self, path: str, key: str) -> None:
        """A stream until it ends; of each message its id, none of which may come twice."""
        seen: set[bytes] = set()
        async for line in lines(self._service.port, path, key):
            if line.startswith(b"id: "):
                self.heard += 1
                self.heard_twice += line in seen
                seen.add(line)

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while time.monotonic() < self._until:
            await asyncio.sleep(5)
            counted = await loop.run_in_executor(None, self.count)
            self.memory.append(self._service.memory("api"))
            print(
                f"{len(self.accepted):6} accepted  {dict(sorted(counted.items()))}"
                f"  {len(self.polled.seconds)} polls  {self.heard} events heard"
                f"  {self.memory[-1] / 2**20:.0f} MB",
                flush=True,
            )
            if counted["succeeded"] >= self._size.trained and len(self.accepted) >= self._size.jobs:
                return

    def count(self) -> Counter[str]:
        found = self._service.rows(
            "SELECT status, count(*) FROM jobs WHERE id <> %s GROUP BY 1", self.ballast
        )
        return Counter(dict(found))


async def ask(
    port: int,
    method: str,
    path: str,
    key: str,
    body: Any = None,
    kind: str = "application/json",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, bytes]:
    """One request on a connection of its own: status and body; 0 where nobody answers."""
    sent = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(sent)}\r\n"
    )
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(head.encode() + sent)
                answer = await reader.read(-1)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return 0, b""
    return int(answer[9:12] or 0), answer.partition(b"\r\n\r\n")[2]


async def lines(port: int, path: str, key: str) -> AsyncIterator[bytes]:
    """The lines of a stream until it ends, those of HTTP's own among them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(get(path, key).replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nConnection: close\r\n"))
        while line := await reader.readline():
            yield line
    finally:
        writer.close()
