"""Trainer children: one is kept warm, a job takes it, its events come back as objects, its death has a name.

A trainer gets its job by file paths on stdin and holds no credentials; its environment is an allow-list.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from worker.training import events

log = structlog.get_logger()
MAX_EVENT_BYTES = 4 * 1024 * 1024  # samples of long prompts are the largest
LOG_LINES = 50
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH")
PASSED_ON_PREFIXES = ("CUDA_", "NVIDIA_", "NCCL_", "OMP_", "MKL_", "TORCH_", "PYTORCH_", "TRITON_")
# Exit codes of worker.training and what they mean for the job; any other is a crash, which is tried again.
FINISHED, STOPPED = 0, 75
FINAL_CODES = {
    77: "out_of_memory",
    78: "invalid_job",
    79: "disk_full",
    80: "non_finite",
    81: "max_runtime_exceeded",
    82: "stalled",
}


def trainer_environment() -> dict[str, str]:
    """What a trainer may know: where programs and GPUs are, never a URL, a password or a token."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }
    return {**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "PYTHONUNBUFFERED": "1"}


class Trainer:
    """One child. Start it from a thread that outlives it: the kernel ends it when that thread ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.training", "--wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=trainer_environment(),
            start_new_session=True,  # its helpers die with it, by process group
        )
        self.pid = self._process.pid
        self.last_lines: deque[str] = deque(maxlen=LOG_LINES)
        self._events: queue.SimpleQueue[events.Event | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read_events, name=f"trainer-{self.pid}-events", daemon=True),
            threading.Thread(target=self._read_log, name=f"trainer-{self.pid}-log", daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_events(self) -> None:
        pipe = self._process.stdout
        if pipe is None:
            return
        while line := pipe.readline(MAX_EVENT_BYTES):
            try:
                self._events.put(events.parse(line))
            except ValueError:
                # What a library prints must not stop a training run.
                self.last_lines.append(line[:500].decode("utf-8", "replace").rstrip())
        self._events.put(None)

    def _read_log(self) -> None:
        if self._process.stderr is None:
            return
        for line in self._process.stderr:
            text = line[:2000].decode("utf-8", "replace").rstrip()
            self.last_lines.append(text)
            log.debug("trainer", pid=self.pid, line=text)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def begin(self, job: dict[str, Any]) -> None:
        """Hand over the job. Raises BrokenPipeError where the child died while it waited."""
        if self._process.stdin is None:
            raise BrokenPipeError
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()

    def next_event(self, timeout: float) -> events.Event | None:
        """The next event; None at the end of them. Raises queue.Empty after `timeout` seconds."""
        return self._events.get(timeout=timeout)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def stop(self) -> None:
        """Ask it to save and leave with code 75."""
        with contextlib.suppress(ProcessLookupError):
            # Only the trainer itself: its helpers are still needed to save.
            os.kill(self.pid, signal.SIGTERM)

    def end(self) -> int:
        """Make sure it and all it started are gone; its exit code, negative for a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self.signal(signal.SIGKILL)
        code = self._process.wait()
        for reader in self._readers:
            reader.join(5)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code


class WarmTrainers:
    """Keeps one trainer with everything imported; importing takes seconds, a claim should not wait for it."""

    def __init__(self, start: Callable[[], Trainer] = Trainer) -> None:
        self._start = start
        self._ready: queue.SimpleQueue[Trainer] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(0)
        self._waiting = 0
        self._lock = threading.Lock()
        self._closed = False
        # PR_SET_PDEATHSIG follows the parent *thread*: this one lives as long as the worker.
        self._thread = threading.Thread(target=self._keep_warm, name="trainer-starter", daemon=True)
        self._thread.start()

    def _keep_warm(self) -> None:
        while True:
            self._wanted.acquire()
            if self._closed:
                # Never return: children still running would be ended with this thread.
                threading.Event().wait()
            try:
                self._ready.put(self._start())
            except OSError as error:
                log.error("trainer_not_started", error=str(error))
                time.sleep(1)
                self._wanted.release()

    def prepare(self) -> None:
        """Have one waiting, unless one is."""
        with self._lock:
            if self._waiting < 1 and not self._closed:
                self._waiting += 1
                self._wanted.release()

    def take(self) -> Trainer:
        """A trainer that lives, warm if there was time."""
        while True:
            self.prepare()
            trainer = self._ready.get()
            with self._lock:
                self._waiting -= 1
            if trainer.alive:
                return trainer
            trainer.end()

    def close(self) -> None:
        """End those that wait for a job."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                trainer = self._ready.get_nowait()
                trainer.signal(signal.SIGKILL)
                trainer.end()
