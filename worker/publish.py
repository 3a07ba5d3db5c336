"""The trainer's model folder becomes a published model: adopted by the store, then made known by one row."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.lifecycle import claims
from app.lifecycle.claims import Claim
from app.storage import Store
from app.tables import JsonObject, Model
from worker import results
from worker.training import manifest
from worker.training.events import Finished


@dataclass(frozen=True)
class Published:
    """A model folder that lies in the store and has no row yet."""

    key: str
    manifest: JsonObject
    bytes: int


def adopt(store: Store, held: Claim, finished: Finished) -> Published:
    """Move the folder below `models/`. Raises manifest.Damaged when it is not what the trainer sealed.

    The key carries the epoch: what a fenced-off worker adopts lies under a name of its own, without a row.
    """
    folder = Path(finished.model_path)
    if manifest.verify(folder) != finished.manifest_sha256:
        raise manifest.Damaged("manifest.json: not the one that the trainer stated")
    key = f"models/{held.job_id}-e{held.epoch}"
    store.adopt(folder, key)
    facts = store.read_manifest(key)
    return Published(key, facts, sum(int(file["bytes"]) for file in facts["files"].values()))


def announce(
    session: Session,
    store: Store,
    held: Claim,
    name: str,
    base: str,
    owner: str,
    model: Published,
    trained_tokens: int,
) -> bool:
    """The job succeeds, its model and result file exist, in one transaction. False: the claim was lost."""
    if not claims.succeed(session, held, name, trained_tokens):
        return False
    results.attach(session, store, held, owner)
    session.execute(
        insert(Model).values(
            id=f"model-{held.job_id[6:]}",
            owner=owner,
            name=name,
            base=base,
            job_id=held.job_id,
            key=model.key,
            manifest=model.manifest,
            bytes=model.bytes,
        )
    )
    return True
