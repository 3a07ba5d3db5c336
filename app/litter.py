"""Bytes that no row speaks of: what a crash left between writing them and making them known.

What lies below `jobs/<id>/e<epoch>/` under an epoch that is over can never become known any more, since the
claim that could have reported it is fenced off: it goes at once. Anything else goes after a day.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.lifecycle.claims import ENDED
from app.storage import Store, StoreAway
from app.tables import Checkpoint, File, Job, Model
from app.uploads.rows import Upload

log = structlog.get_logger()

# No upload and no publishing takes so long; and a database that was restored from yesterday's dump should
# not cost today's models before somebody notices.
ABANDONED_AFTER = 24 * 3600.0  # seconds
SETTLED_AFTER = 600.0  # seconds; a fenced-off trainer may still be writing for a moment
BATCH = 200  # names looked up in one query
EPOCH = re.compile(r"e(\d+)")
Kind = Literal["files", "models", "cache", "jobs", "uploads"]
KINDS: tuple[Kind, ...] = ("files", "models", "cache", "jobs", "uploads")


@dataclass(frozen=True)
class Part:
    """Some of the names in one folder of the store."""

    kind: Kind
    names: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """What rows say of a part: keys that stay, and of jobs (whether it runs, its epoch)."""

    keys: frozenset[str]
    jobs: dict[str, tuple[bool, int]] = field(default_factory=dict)


def parts(store: Store) -> list[Part]:
    """All that lies in the store, in parts that one query can look up."""
    found = []
    for kind in KINDS:
        names = store.names(kind)
        found += [Part(kind, tuple(names[at : at + BATCH])) for at in range(0, len(names), BATCH)]
    return found


def known(session: Session, part: Part) -> Known:
    keys = [f"{part.kind}/{name}" for name in part.names]
    match part.kind:
        case "files":
            return Known(frozenset(filter(None, session.scalars(select(File.key).where(File.key.in_(keys))))))
        case "models":
            rows = session.scalars(select(Model.key).where(Model.key.in_(keys)))
            return Known(frozenset(filter(None, rows)))
        case "cache":
            ids = {name: name.split("+") for name in part.names}
            wanted = {file for files in ids.values() for file in files}
            there = set(session.scalars(select(File.id).where(File.id.in_(wanted), File.key.is_not(None))))
            return Known(frozenset(f"cache/{name}" for name, files in ids.items() if there.issuperset(files)))
        case "uploads":
            return Known(
                frozenset(filter(None, session.scalars(select(Upload.key).where(Upload.key.in_(keys)))))
            )
        case "jobs":
            return _known_jobs(session, part.names)


def _known_jobs(session: Session, ids: tuple[str, ...]) -> Known:
    rows = session.execute(select(Job.id, Job.status, Job.epoch).where(Job.id.in_(ids)))
    jobs = {row.id: (row.status == "running", row.epoch) for row in rows}
    kept = session.scalars(select(Checkpoint.key).where(Checkpoint.job_id.in_(ids)))
    # A job may train from a checkpoint of another that has been saved anew since.
    sources = session.scalars(
        select(Job.source).where(Job.source.startswith("store:jobs/"), Job.status.not_in(ENDED))
    )
    keys = {key for key in kept if key} | {source.removeprefix("store:") for source in sources}
    return Known(frozenset(keys), jobs)


def remove(store: Store, part: Part, known: Known) -> list[str]:
    """Remove what is not known of this part; the keys that went. What cannot be removed, as a trainer may
    have made it, stays and keeps nothing of others. Raises StoreAway."""
    gone = []
    for name in part.names:
        try:
            for key, patience in _unknown(store, part.kind, name, known):
                if store.age(key) > patience:
                    store.delete(key)
                    gone.append(key)
        except StoreAway:
            raise
        except (OSError, ValueError) as error:
            log.warning("litter_stays", key=f"{part.kind}/{name}", error=str(error))
    return gone


def _unknown(store: Store, kind: Kind, name: str, known: Known) -> Iterator[tuple[str, float]]:
    """Keys, and how many seconds old they must be to go."""
    key = f"{kind}/{name}"
    if kind != "jobs":
        if key not in known.keys:
            yield key, ABANDONED_AFTER
    elif name not in known.jobs:
        yield key, ABANDONED_AFTER
    else:
        running, epoch = known.jobs[name]
        for attempt in store.names(key):
            form = EPOCH.fullmatch(attempt)
            # Not what has been begun since the row was looked at.
            if form is not None and int(form[1]) < epoch + (not running):
                yield from _unknown_in(store, f"{key}/{attempt}", known)


def _unknown_in(store: Store, attempt: str, known: Known) -> Iterator[tuple[str, float]]:
    checkpoints = f"{attempt}/checkpoints"
    both = [f"{folder}/{name}" for folder in (attempt, checkpoints) for name in store.names(folder)]
    found = [key for key in both if key != checkpoints]
    kept = known.keys.intersection(found)
    if not kept:
        yield attempt, SETTLED_AFTER
        return
    yield from ((key, SETTLED_AFTER) for key in found if key not in kept)
