"""One child of `finetuned up`: tied to us, its output in a log file, ended in the way it likes best."""

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.embedded import heritage, tether

KILL_GRACE = 5.0  # seconds between the last polite signal and SIGKILL


class EmbeddedError(Exception):
    """What keeps the embedded stack from running, as one sentence that says what to do."""


class Process:
    """A program that dies when we do, in a session of its own so that Ctrl-C reaches only us.

    It inherits our environment, or, where `inherits` is given, what holds no secret and what begins as that
    says. `death` is the signal that the kernel sends it when we are killed. In `environment`, which is added,
    None takes a variable away; `descriptors` stay open for it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str | None] | None = None,
        folder: Path | None = None,
        descriptors: Sequence[int] = (),
        inherits: tuple[str, ...] | None = None,
        identity: str = "same",
        death: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.log = log
        self._command = tether.command([str(word) for word in command], death, identity)
        self._environment = dict(environment or {})
        self._folder = folder
        self._descriptors = tuple(descriptors)
        self._inherits = inherits
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises RuntimeError outside the main thread, whose end would be taken for ours."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(f"{self.name} must be started by the main thread")
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        kept = os.environ if self._inherits is None else heritage.harmless(os.environ, self._inherits)
        variables = {**kept, **self._environment}
        try:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                cwd=self._folder,
                env={name: value for name, value in variables.items() if value is not None},
                pass_fds=self._descriptors,
                start_new_session=True,
            )
        finally:
            os.close(descriptor)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._child.poll() if self._child else None

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def send(self, number: signal.Signals) -> None:
        if self._child is not None:
            self._child.send_signal(number)

    def stop(self, *signals: signal.Signals, grace: float) -> None:
        """Sends each signal in turn, waiting `grace` seconds after it; in the end SIGKILL, to its session."""
        if self._child is None:
            return
        for number in signals:
            self._child.send_signal(number)
            if self._ended_within(grace):
                return
        self.end(0)

    def end(self, grace: float) -> None:
        """Leaves it `grace` seconds to end, then kills it."""
        if not self._ended_within(grace):
            self.kill()
            self._ended_within(KILL_GRACE)

    def kill(self) -> None:
        """At once, with whatever it has started in its session."""
        if self.alive and self._child is not None:
            os.killpg(self._child.pid, signal.SIGKILL)

    def _ended_within(self, seconds: float) -> bool:
        try:
            return self._child is None or self._child.wait(seconds) is not None
        except subprocess.TimeoutExpired:
            return False

    def last_words(self, lines: int = 8) -> str:
        """The end of its log, for the sentence that says why it died."""
        try:
            text = self.log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])
