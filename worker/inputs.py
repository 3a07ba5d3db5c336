"""What a trainer reads: brought to this machine while its attempt waits, and held until that is over."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

from worker import order
from worker.order import Order
from worker.patience import patiently
from worker.runtime import Runtime

LOOK_EVERY = 0.2  # seconds
Line = dict[str, Any]


class Inputs:
    """Of one attempt; nothing is held before `bring` and after `close`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._held = ExitStack()

    def bring(self, given: Order, given_up: Callable[[], bool]) -> Line | None:
        """What the trainer is told, once all of it is here; None when that was given up.

        Raises what `order.bring` does.
        """
        future: Future[tuple[Line, ExitStack]] = Future()
        alone = threading.Event()
        # Not a pool's thread: the interpreter would wait at its exit until gigabytes are downloaded.
        fetch = threading.Thread(target=self._fetch, args=(given, future, alone), name="fetch", daemon=True)
        fetch.start()
        while not future.done():
            if given_up():
                alone.set()
                future.add_done_callback(_let_go)
                return None
            time.sleep(LOOK_EVERY)
        line, self._held = future.result()
        return line

    def close(self) -> None:
        """Let go of it."""
        self._held.close()

    def _fetch(self, given: Order, future: Future[tuple[Line, ExitStack]], alone: threading.Event) -> None:
        held, runtime = ExitStack(), self._runtime
        try:
            line, corrupt = patiently(
                lambda: order.bring(given, runtime.store, runtime.settings, held),
                runtime.settings,
                alone.is_set,
            )
            if corrupt:
                with runtime.database.transaction() as session:
                    for checkpoint in corrupt:
                        checkpoint.tell(session)
            future.set_result((line, held))
        except BaseException as error:
            held.close()
            future.set_exception(error)


def _let_go(brought: Future[tuple[Line, ExitStack]]) -> None:
    """Of what came when nobody waited for it any more."""
    if brought.exception() is None:
        brought.result()[1].close()
