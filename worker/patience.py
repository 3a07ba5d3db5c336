"""Waiting for a store that is away, as a worker waits for an absent database: minutes, not for ever."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from app.settings import Settings
from app.storage import StoreAway

log = structlog.get_logger()
T = TypeVar("T")


def patiently(work: Callable[[], T], settings: Settings, given_up: Callable[[], bool]) -> T:
    """What `work` returns, asked again while the store is away.

    Raises StoreAway after `max_offline`, or once it is `given_up`; at once whatever else `work` raises.
    """
    deadline = time.monotonic() + settings.max_offline.total_seconds()
    while True:
        try:
            return work()
        except StoreAway as error:
            if given_up() or time.monotonic() > deadline:
                raise
            log.warning("store_waited_for", error=str(error))
            time.sleep(random.uniform(0.5, 2.0))  # noqa: S311  # spreads many workers' requests, no secret
