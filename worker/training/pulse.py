"""What the outside may want of a running trainer: that it stops, and that it is alive."""

import threading
import time
from collections.abc import Callable

from worker.training.failure import Stopped

TELL_EVERY = 60.0  # seconds; a supervisor takes a trainer that says nothing for many minutes for dead


class Pulse:
    """Beats while work goes on. SIGTERM sets `asked`; long work looks at it between its parts."""

    def __init__(self, tell: Callable[[], None] = lambda: None) -> None:
        """`tell` is called at a beat, once a minute at most."""
        self.asked = False
        self._tell = tell
        self._last = self._told = time.monotonic()

    def stop(self, *_: object) -> None:
        """The signal handler."""
        self.asked = True

    def beat(self) -> None:
        """Work has gone on. Raises Stopped where the process was asked to stop."""
        self._alive()
        if self.asked:
            raise Stopped

    def tick(self) -> None:
        """Work has gone on; the caller looks at `asked` itself."""
        self._alive()

    def watch(self, limit: float, stalled: Callable[[float], None]) -> None:
        """Calls `stalled` from another thread once nothing has beaten for `limit` seconds."""
        threading.Thread(target=self._watch, args=(limit, stalled), name="watchdog", daemon=True).start()

    def _watch(self, limit: float, stalled: Callable[[float], None]) -> None:
        while (silent := time.monotonic() - self._last) < limit:
            time.sleep(min(limit - silent, 5.0))
        stalled(silent)

    def _alive(self) -> None:
        self._last = time.monotonic()
        if self._last - self._told > TELL_EVERY:
            self._told = self._last
            self._tell()
