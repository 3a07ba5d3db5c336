"""What a worker leaves on its own disk where the store is a bucket: the folders of attempts that are over,
and what was encoded of files that are gone."""

from dataclasses import replace

import structlog

from app import litter
from app.database import WorkerDatabase
from app.folder import Folder
from app.storage import Store

log = structlog.get_logger()
EVERY = 600.0  # seconds
KINDS = ("jobs", "cache")


def sweep(database: WorkerDatabase, store: Store) -> list[str]:
    """Remove them; the keys that went. A store that is a folder is tidied by the API (app.litter)."""
    if store.place("jobs") is not None:
        return []
    store.sweep()
    here, gone = Folder(store.root), []
    for part in litter.parts(here):
        if part.kind in KINDS:
            with database.transaction() as session:
                known = litter.known(session, part)
            # Checkpoints that rows speak of lie in the bucket: here, no folder of a past attempt is needed.
            kept = replace(known, keys=frozenset()) if part.kind == "jobs" else known
            gone += litter.remove(here, part, kept)
    if gone:
        log.info("leftovers_removed", keys=gone[:20], count=len(gone))
    return gone
