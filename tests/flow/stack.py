"""The whole service as a user starts it, `finetuned up` in a process of its own, for tests to talk to."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

DEADLINE = 150.0  # seconds for what takes ten on an idle machine
ENDED = ("succeeded", "failed", "cancelled")
# Deaths and wishes are noticed within seconds.
QUICK = {
    "FINETUNED_LEASE": "10",
    "FINETUNED_HEARTBEAT": "1",
    "FINETUNED_LEASE_GRACE": "1",
    "FINETUNED_SWEEP_INTERVAL": "1",
    "FINETUNED_RETRY_DELAY": "1",
    "FINETUNED_MIN_FREE_BYTES": "0",
    # Threads that spin for one another crawl on a machine that is busy otherwise.
    "OMP_NUM_THREADS": "1",
}


@dataclass
class Stack:
    """`finetuned up` in a process of its own."""

    home: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "up", "--home", str(self.home), "--port", "0"],
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL,
        )
        wait_for(lambda: (self.home / "address").exists() or self.process.poll() is not None, "the address")
        assert self.process.poll() is None, "finetuned up ended at once"

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        (self.home / "address").unlink(missing_ok=True)

    @property
    def url(self) -> str:
        return (self.home / "address").read_text().strip()

    @property
    def key(self) -> str:
        return (self.home / "key").read_text().strip()

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60)

    def get(self, path: str, **named: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.key}", **named.pop("headers", {})}
        return httpx2.get(self.url + path, headers=headers, timeout=60, **named)


@contextmanager
def running(home: Path, environment: dict[str, str]) -> Iterator[Stack]:
    """The service on this home; stopped at the end, where no test has done so."""
    stack = Stack(home, environment)
    stack.start()
    try:
        yield stack
    finally:
        if stack.process.poll() is None:
            stack.stop()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    """Raises AssertionError when the condition does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)


def wait_for_end(client: OpenAI, job_id: str) -> FineTuningJob:
    wait_for(lambda: client.fine_tuning.jobs.retrieve(job_id).status in ENDED, f"the end of {job_id}")
    return client.fine_tuning.jobs.retrieve(job_id)
