"""Trainer children: one is kept warm, a job takes it, its events come back as objects, its death has a name.

A trainer gets its job by file paths on stdin and holds no credentials; its environment is an allow-list.
"""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from app.embedded.heritage import harmless
from worker import hearing
from worker.cells import Cell
from worker.training import events, spinning

log = structlog.get_logger()
COMMAND = (sys.executable, "-m", "worker.training", "--wait")
MAX_LINE_BYTES = 4 * 1024 * 1024  # samples of long prompts are the largest events
LOG_LINES = 50
LOG_LINE_BYTES = 64 * 1024  # a progress bar may never end its line
# numpy's BLAS is used for nothing, and its pool would be a thread that `cell.confine` comes too late for.
ALONE = {"OPENBLAS_NUM_THREADS": "1"}
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
    return {
        spinning.NAME: str(spinning.SERVED),
        **ALONE,
        **harmless(os.environ),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "PYTHONUNBUFFERED": "1",
    }


def _folders(temporary: Path | None) -> dict[str, str]:
    """Where libraries put what they keep: caches of compiled code are each trainer's own."""
    if temporary is None:
        return {}
    names = ("TMPDIR", "HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")
    return dict.fromkeys((*names, "TORCHINDUCTOR_CACHE_DIR"), str(temporary))


class Trainer:
    """One child. Start it from a thread that outlives it: the kernel ends it when that thread ends."""

    def __init__(self, command: Sequence[str] = COMMAND, cell: Cell | None = None) -> None:
        """In a cell, where one is given. Raises OSError, RuntimeError where it cannot be started: nothing is
        left of it then, however often that is tried."""
        self._cell = cell
        self._temporary = cell.open() if cell else None
        self.last_lines: deque[str] = deque(maxlen=LOG_LINES)
        self._events: queue.SimpleQueue[events.Event | None] = queue.SimpleQueue()
        with contextlib.ExitStack() as undo:
            if self._temporary is not None:
                undo.callback(shutil.rmtree, self._temporary, ignore_errors=True)
            self._process = subprocess.Popen(
                cell.command(command, self._temporary) if cell else command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=trainer_environment() | _folders(self._temporary),
                start_new_session=True,  # its helpers die with it, by process group
            )
            self.pid = self._process.pid
            undo.callback(self._process.wait)
            undo.callback(self.signal, signal.SIGKILL)
            self._readers = [self._thread(self._read_events), self._thread(self._read_log)]
            undo.pop_all()

    def _thread(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        name = f"trainer-{self.pid}-{target.__name__.strip('_')}"
        thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
        thread.start()
        return thread

    def _read_events(self) -> None:
        pipe = self._process.stdout
        try:
            while pipe is not None and (line := pipe.readline(MAX_LINE_BYTES)):
                try:
                    self._events.put(hearing.hear(line))
                except ValueError:
                    # What a library prints must not stop a training run.
                    self.last_lines.append(hearing.text(line, 500))
        finally:
            self._events.put(None)  # whatever happened: nobody may wait for ever

    def _read_log(self) -> None:
        pipe = self._process.stderr
        while pipe is not None and (line := pipe.readline(LOG_LINE_BYTES)):
            text = hearing.text(line, 2000)
            self.last_lines.append(text)
            log.debug("trainer", pid=self.pid, line=text)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def begin(self, job: dict[str, Any]) -> None:
        """Hand over the job; returns at once. Where the child dies over it, the end of its events tells."""
        confined = job | {"confine": self._cell.limits(job)} if self._cell else job
        self._thread(self._write, json.dumps(confined).encode() + b"\n")

    def _write(self, line: bytes) -> None:
        # In a thread of its own: a child that hangs before it reads would block us beyond a pipe's 64 KiB.
        if self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(line)
                self._process.stdin.flush()

    def next_event(self, timeout: float) -> events.Event | None:
        """The next event; None at the end of them. Raises queue.Empty after `timeout` seconds."""
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            if not self.alive:
                # A helper that outlives it would hold the pipe open, and the end would never come.
                self.signal(signal.SIGKILL)
            raise

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
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        return code


class Ordered:
    """A trainer that is started for somebody, who takes it or gives it up. It may have its job from its first
    moment: one that nobody takes any more would train without a reader, so it is ended."""

    def __init__(self, start: Callable[[], Trainer]) -> None:
        self.start = start
        self.given_up = False
        self._ready: queue.SimpleQueue[Trainer] = queue.SimpleQueue()

    def deliver(self, trainer: Trainer) -> None:
        self._ready.put(trainer)
        if self.given_up:  # looked at after the put: of two who clear up, one gets it
            self.give_up()

    def take(self, timeout: float) -> Trainer:
        """Raises queue.Empty after `timeout` seconds; asking again goes on."""
        return self._ready.get(timeout=timeout)

    def give_up(self) -> None:
        """End what is there and what may still come."""
        self.given_up = True
        with contextlib.suppress(queue.Empty):
            while True:
                trainer = self._ready.get_nowait()
                trainer.signal(signal.SIGKILL)
                trainer.end()


class WarmTrainers:
    """Keeps one trainer with everything imported; importing takes seconds, a claim should not wait for it."""

    def __init__(self, start: Callable[[], Trainer] = Trainer, nice: int = 0) -> None:
        """`nice` as in nice(1): a poll should not wait until four trainers have had their turn."""
        self._nice = nice
        self._warm = Ordered(start)
        self._wanted: queue.SimpleQueue[Ordered] = queue.SimpleQueue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._closed = False
        # PR_SET_PDEATHSIG follows the parent *thread*: this one lives as long as the worker.
        self._thread = threading.Thread(target=self._keep_warm, name="trainer-starter", daemon=True)
        self._thread.start()

    def _keep_warm(self) -> None:
        # On Linux each thread has its own, and a process begins with that of the thread that starts it.
        this = os.PRIO_PROCESS, threading.get_native_id()
        os.setpriority(*this, min(19, os.getpriority(*this) + self._nice))
        while True:
            ordered = self._wanted.get()
            if self._closed:
                # Never return: children still running would be ended with this thread.
                threading.Event().wait()
            if ordered.given_up:
                continue
            try:
                ordered.deliver(self._stand_back(ordered.start()))
            except Exception as error:  # no memory, no process, no thread: all may come back
                log.error("trainer_not_started", error=str(error))
                time.sleep(1)
                self._wanted.put(ordered)

    def _stand_back(self, trainer: Trainer) -> Trainer:
        """Where the kernel shares out processors by session (autogroup), nice(1) counts only within one."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{trainer.pid}/autogroup").write_text(str(self._nice))
        return trainer

    def prepare(self) -> None:
        """Have one waiting, unless one is."""
        with self._lock:
            if self._waiting < 1 and not self._closed:
                self._waiting += 1
                self._wanted.put(self._warm)

    def start(self, start: Callable[[], Trainer]) -> Ordered:
        """Start one of another kind, in the thread that outlives it."""
        ordered = Ordered(start)
        self._wanted.put(ordered)
        return ordered

    def take(self, timeout: float, *, fresh: bool = False) -> Trainer:
        """A trainer, warm if there was time. One that died while it waited is replaced, once: the second may
        be dead too, and its exit code and last lines then say what is wrong here.

        Raises queue.Empty when none could be started within `timeout` seconds; asking again goes on.
        """
        self.prepare()
        trainer = self._warm.take(timeout)
        with self._lock:
            self._waiting -= 1
        if trainer.alive or fresh:
            return trainer
        log.warning("trainer_died_waiting", pid=trainer.pid, code=trainer.end())
        return self.take(timeout, fresh=True)

    def close(self) -> None:
        """End those that wait for a job."""
        self._closed = True
        self._warm.give_up()
