"""What a worker and a generator look at before they begin."""

import sys

import structlog

from app.settings import Settings
from app.storage import Store, StoreAway, StoreRefused, open_store

log = structlog.get_logger()


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
