"""`finetuned …` against a real API, and in a real pseudo-terminal where that matters."""

import io
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path

import pytest

from app import cli
from tests.app.conftest import Api, api, client, http, more_settings, rows

__all__ = ["api", "client", "http", "more_settings", "rows"]
ROOT = Path(__file__).parents[2]
DEADLINE = 60.0  # seconds for what takes one on an idle machine
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r")


@dataclass
class Done:
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Done]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **environment: str) -> Run:
    """Runs one command in this process, in this environment; `said` is its standard input."""
    for name, value in {"COLUMNS": "200", **environment}.items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str, said: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["finetuned", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0 if code is None else 1, told.out, told.err)

    return call


@pytest.fixture
def run(api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command with the API's address and key in the environment."""
    return runner(
        monkeypatch,
        capsys,
        FINETUNED_URL=api.url,
        FINETUNED_API_KEY=api.key,
        FINETUNED_HOME=str(api.settings.home),
    )


@dataclass
class Terminal:
    """A command in a pseudo-terminal of 100 columns and 30 lines; `written` is what it wrote, as it came."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    written: str = ""
    _child: int = field(init=False)
    _line: int = field(init=False)

    def __post_init__(self) -> None:
        self._child, self._line = pty.fork()
        if self._child == 0:
            os.chdir(ROOT)
            os.environ.update(self.environment)
            # What a shell starts in its background ignores Ctrl-C, and so would all that comes of it.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execv(sys.executable, [sys.executable, "-m", "app.cli", *self.arguments])  # noqa: S606
        ioctl(self._line, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))

    @property
    def text(self) -> str:
        """Without colours and movements of the cursor."""
        return CONTROL.sub("", self.written)

    def wait_for(self, what: str) -> None:
        """Raises AssertionError where it is not written in time."""
        deadline = time.monotonic() + DEADLINE
        while what not in self.text:
            assert time.monotonic() < deadline, f"{what!r} was never written:\n{self.text}"
            assert self.read(), f"{what!r} was not written before the end:\n{self.text}"

    def wait_until_asked(self) -> None:
        """Until it sleeps over a line that is being typed. A key that comes earlier, while the line is set up
        for reading, is kept until the next one, or lost."""
        self._wait(lambda: self._is_raw() and self._sleeps(), "it never asks")

    def wait_until_busy(self) -> None:
        """Until it has taken the line and waits for what comes of it."""
        self._wait(lambda: not self._is_raw() and self._sleeps(), "it goes on asking")

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + DEADLINE
        times = 0
        while times < 3:  # in a row: it may be between two things that it does
            assert time.monotonic() < deadline, f"{complaint}:\n{self.text}"
            assert self.read(), f"{complaint}, and has ended:\n{self.text}"
            times = times + 1 if condition() else 0

    def _is_raw(self) -> bool:
        """Whether each key is read as it is pressed, which is how a line can be edited."""
        return not termios.tcgetattr(self._line)[3] & termios.ICANON

    def _sleeps(self) -> bool:
        return Path(f"/proc/{self._child}/stat").read_text().rpartition(")")[2].split()[0] == "S"

    def type(self, keys: str) -> None:
        """Once it asks for them."""
        self.wait_until_asked()
        self.send(keys)

    def send(self, keys: str) -> None:
        os.write(self._line, keys.encode())

    def end(self) -> int:
        """Its exit code, once it has ended."""
        deadline = time.monotonic() + DEADLINE
        while self.read():
            assert time.monotonic() < deadline, f"it does not end:\n{self.text}"
        _, status = os.waitpid(self._child, 0)
        self._child = 0
        return os.waitstatus_to_exitcode(status)

    def read(self) -> bool:
        """Takes what has been written; False once the other side is closed."""
        if not select.select([self._line], [], [], 0.05)[0]:
            return True
        try:
            data = os.read(self._line, 65536)
        except OSError:  # how Linux tells that nobody has it open
            return False
        self.written += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        os.close(self._line)


OpenTerminal = Callable[..., Terminal]


@pytest.fixture
def terminal(api: Api) -> Iterator[OpenTerminal]:
    """Starts a command in a pseudo-terminal."""
    opened: list[Terminal] = []
    around = {"FINETUNED_URL": api.url, "FINETUNED_API_KEY": api.key, "TERM": "xterm-256color"}

    def open_one(*arguments: str, **environment: str) -> Terminal:
        opened.append(Terminal(arguments, {**around, **environment}))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()
