"""Keeps the servers and programs of `finetuned up` running, and ends them in order."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from app.embedded import logs
from app.embedded.process import EmbeddedError, Process
from app.embedded.programs import Running

FIRST_DELAY = 1.0  # seconds before a program that died is started again; doubled each time
LONGEST_DELAY = 30.0
STEADY = 60.0  # seconds after which a program counts as well again
ROUND = 0.1  # seconds between two looks
TRIM_INTERVAL = 60.0
HOPELESS = 3  # deaths before it was ever ready

Say = Callable[[str], None]


class Service(Protocol):
    """A server or a program."""

    @property
    def process(self) -> Process: ...
    def start(self) -> object: ...
    def stop(self) -> None: ...


@dataclass
class Kept:
    service: Service
    started: float = field(default_factory=time.monotonic)
    delay: float = FIRST_DELAY
    deaths: int = 0
    again_at: float | None = None


class Supervisor:
    """Starts services in order, restarts what dies, stops all in the opposite order."""

    def __init__(self, log_folder: Path, say: Say) -> None:
        self._logs = log_folder
        self._say = say
        self._kept: list[Kept] = []
        self._trim_at = time.monotonic() + TRIM_INTERVAL

    def start(self, service: Service) -> object:
        """Gives what the service's own start gives."""
        self._kept.append(Kept(service))  # first, so that one that started half-way is stopped too
        return service.start()

    def watch(self) -> None:
        """One look at everything."""
        now = time.monotonic()
        for kept in self._kept:
            if kept.again_at is not None and now >= kept.again_at:
                self._start_again(kept)
            elif kept.again_at is None and not kept.service.process.alive:
                self._note_death(kept, f"ended ({_how(kept.service.process.code())})")
        if now >= self._trim_at:
            logs.trim(self._logs)
            self._trim_at = now + TRIM_INTERVAL
        time.sleep(ROUND)

    def despair(self) -> None:
        """Raises EmbeddedError for a program that keeps dying: before the first `ready` it will not heal."""
        for kept in self._kept:
            if kept.deaths >= HOPELESS:
                process = kept.service.process
                raise EmbeddedError(
                    f"{process.name} does not start ({_how(process.code())}):\n{process.last_words()}"
                )

    def stop(self) -> None:
        """All programs are told at once, so that their graces run side by side; the servers go last."""
        for running in self._programs():
            running.ask()
        for kept in reversed(self._kept):
            kept.service.stop()

    def hurry(self) -> None:
        """No more grace for programs; the servers still end properly."""
        for running in self._programs():
            running.process.kill()

    def _programs(self) -> list[Running]:
        return [kept.service for kept in self._kept if isinstance(kept.service, Running)]

    def _start_again(self, kept: Kept) -> None:
        kept.again_at = None
        kept.started = time.monotonic()
        try:
            kept.service.start()
        except EmbeddedError as error:
            self._note_death(kept, f"cannot be started again ({error})")

    def _note_death(self, kept: Kept, what: str) -> None:
        if time.monotonic() - kept.started > STEADY:
            kept.delay, kept.deaths = FIRST_DELAY, 0
        kept.deaths += 1
        kept.again_at = time.monotonic() + kept.delay
        process = kept.service.process
        self._say(f"{process.name} {what}; starting it again in {kept.delay:.0f} s. Its log: {process.log}")
        kept.delay = min(kept.delay * 2, LONGEST_DELAY)


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
