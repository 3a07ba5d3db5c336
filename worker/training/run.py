"""One job in this process: signals, events out, exit status."""

import contextlib
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from worker.training import events, failure
from worker.training.events import Busy, Event, Failed, Ready, Step
from worker.training.failure import Cramped, Stopped, classify
from worker.training.job import Job, from_arguments
from worker.training.pulse import Pulse
from worker.training.siblings import Siblings


class Speaker:
    """Writes events to the stream, whole lines from any thread; remembers the last step."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self.step: int | None = None

    def say(self, event: Event) -> None:
        if isinstance(event, Step):
            self.step = event.step
        with self._lock:
            self._stream.write(events.line(event) + "\n")
            self._stream.flush()


def run(arguments: Sequence[str], stream: TextIO, status: Path | None = None) -> int:
    """Trains the job on the command line, or with `--wait` the one that comes on stdin.

    `status`: where several processes of one job leave how it ended.
    """
    speaker, siblings = Speaker(stream), Siblings(status)
    pulse = Pulse(lambda: None if _rank() else speaker.say(Busy()))
    signal.signal(signal.SIGTERM, pulse.stop)
    signal.signal(signal.SIGINT, pulse.stop)
    try:
        job = from_arguments(arguments)
        with _unwatched():
            from worker.training import loop  # seconds: torch and transformers

            if job is None:
                warm_up()
        if job is None:
            job = _wait(speaker, pulse)
        if job is None:
            return failure.STOPPED if pulse.asked else failure.FINISHED
        job.confine()
        pulse.tick()
        pulse.watch(job.recipe.max_step_time, lambda silent: _stalled(speaker, siblings, silent))
        for event in loop.train(job, pulse):
            if not _rank():
                speaker.say(event)
        # The first process publishes after the others are done, and may yet fail.
        return failure.FINISHED if _rank() else siblings.end(failure.FINISHED)
    except Cramped as cramped:
        if siblings.first(failure.STOPPED):
            speaker.say(cramped.notice)
        return failure.STOPPED
    except Stopped:
        return siblings.end(failure.STOPPED)
    except BrokenPipeError:
        return failure.BROKEN  # nobody listens any more
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        found = classify(error)
        if siblings.first(found.exit_status):
            speaker.say(Failed(found.code, found.message, found.param, speaker.step))
        return found.exit_status


def _wait(speaker: Speaker, pulse: Pulse) -> Job | None:
    """One job from stdin; None when stdin ends or SIGTERM comes first."""
    if pulse.asked:
        return None
    # While idle there is nothing to save: let the signal end the process at once.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(failure.STOPPED))
    speaker.say(Ready())
    line = sys.stdin.readline()
    signal.signal(signal.SIGTERM, pulse.stop)
    return Job.from_json(line) if line.strip() else None


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """What is imported here stays: to look through it for garbage, again and again, took an eighth of the
    start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def warm_up() -> None:
    """Imports and initialises what the first step would otherwise wait for."""
    import torch
    from transformers import AutoModelForCausalLM  # noqa: F401

    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def _stalled(speaker: Speaker, siblings: Siblings, silent: float) -> None:
    message = f"No micro-step has ended for {silent:.0f} s (max_step_time); the last checkpoint still stands."
    if siblings.first(failure.TIME_OVER):
        speaker.say(Failed("stalled", message, "max_step_time", speaker.step))
    os._exit(failure.TIME_OVER)
