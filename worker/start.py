"""What a worker and a generator look at before they begin."""

import sys

import structlog

from app import posture
from app.settings import Settings
from app.storage import Store, StoreAway, StoreRefused, open_store
from worker import cells

log = structlog.get_logger()


def sound(settings: Settings) -> None:
    """Ends the process, in a sentence, where settings are such that nothing should be started with them."""
    try:
        posture.check(settings)
    except posture.Unsafe as error:
        sys.exit(f"finetuned: {error}")


def cell_for(settings: Settings, store: Store) -> cells.Cell | None:
    """The trainers' cell. Ends the process, in a sentence, where one is required and cannot be had."""
    try:
        return cells.of(settings, store)
    except cells.NoCell as error:
        sys.exit(f"finetuned: {error}")


def usable_store(settings: Settings, write: bool = True) -> Store:
    """The store of these settings. Ends the process, in a sentence that names the setting, where it refuses
    us; one that is away is waited for later."""
    try:
        store = open_store(settings)
        store.probe(write)
    except StoreRefused as error:
        sys.exit(f"finetuned: {error}")
    except StoreAway as error:
        log.warning("store_away", error=str(error))
    return store
