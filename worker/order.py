"""What a trainer is told: the job's row turned into files and folders."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import catalogue
from app.errors import ServiceError
from app.inspection import refusals
from app.lifecycle.claims import Claim
from app.lifecycle.history import note
from app.settings import Settings
from app.storage import Store
from app.tables import Checkpoint, Event, File, Job
from worker import hub


@dataclass(frozen=True)
class Order:
    """A claimed job, read once; `source` is where its base model comes from."""

    job_id: str
    owner: str
    source: str
    base: str
    model_name: str
    keep: int
    line: dict[str, Any]
    files: tuple[File, ...]
    refuse_on: tuple[str, ...] = ()


class MissingFile(Exception):
    """A file that the job needs is gone."""


class RefusedFinding(Exception):
    """The files hold what the job was not to be trained on."""


def _file(session: Session, file_id: str, store: Store) -> File:
    row = session.get(File, file_id)
    if row is None or row.key is None or not store.path(row.key).is_file():
        raise MissingFile(f"The file {file_id} is gone; upload it again and make a new job.")
    return row


def read(session: Session, held: Claim, store: Store, settings: Settings) -> Order:
    """Raises MissingFile."""
    row = session.get_one(Job, held.job_id)
    base = catalogue.root_name(row.model)
    name = catalogue.tuned_name(base, settings.organization, row.suffix, row.id)
    files = [_file(session, row.training_file, store)]
    line: dict[str, Any] = {
        "job": row.id,
        "recipe": row.recipe,
        "data": str(store.path(files[0].key or "")),
        "format": files[0].format,
        "columns": files[0].columns,
        "base_name": row.model,
        "name": name,
        "out": str(store.path(f"jobs/{row.id}/e{held.epoch}")),
        "cache": str(store.path(_cache_key(row))),
        "resume": [str(path) for path in _resumable(session, row.id, store)],
        "keep": None,
        "fits": _fitting(session, row.id),
    }
    if row.validation_file is not None:
        files.append(_file(session, row.validation_file, store))
        line["validation"] = str(store.path(files[1].key or ""))
        line["validation_format"], line["validation_columns"] = files[1].format, files[1].columns
    # The newest checkpoint may be the one that turns out damaged: two is the least.
    keep = max(2, int(row.recipe["save_total_limit"]))
    refused = tuple(row.refuse_on or ())
    return Order(row.id, row.owner, row.source, base, name, keep, line, tuple(files), refused)


def _fitting(session: Session, job_id: str) -> int | None:
    """Examples per micro-step that an earlier attempt, out of memory, meant to go on with; None: none was."""
    query = select(Event.data).where(Event.job_id == job_id, Event.code == "micro_batch_halved")
    said = session.scalar(query.order_by(Event.seq.desc()).limit(1)) or {}
    size = said.get("train_batch_size")  # a trainer's word, which may be anything
    return size if isinstance(size, int) and size > 0 else None


def _cache_key(row: Job) -> str:
    """Encoded data lies under its files' ids, so that it is deleted with them (app.purge)."""
    return f"cache/{'+'.join(filter(None, (row.training_file, row.validation_file)))}"


def _resumable(session: Session, job_id: str, store: Store) -> list[Path]:
    """Checkpoint folders, newest first, whose manifest is the one that was recorded."""
    rows = session.scalars(
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None))
        .order_by(Checkpoint.step.desc())
    )
    found = []
    for row in rows:
        path = store.path(row.key or "")
        digest = _manifest_sha256(path)
        if digest == row.manifest_sha256:
            found.append(path)
            continue
        message = f"The checkpoint at step {row.step} is damaged; going on from the one before."
        facts = {"step": row.step, "expected": row.manifest_sha256, "found": digest}
        note(session, job_id, "warn", "checkpoint_corrupt", message, facts)
    return found


def _manifest_sha256(folder: Path) -> str | None:
    try:
        return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    except OSError:
        return None


def base_folder(source: str, settings: Settings) -> Path:
    """The base model's folder, fetched from the hub where needed; takes as long as the download.

    Raises catalogue.UnusableModel with what to do.
    """
    if source.startswith("hub:"):
        return hub.fetch(source.removeprefix("hub:"), settings)
    try:
        folder = catalogue.locate(source, settings)
    except FileNotFoundError as error:
        raise catalogue.UnusableModel("its folder is gone.") from error
    catalogue.check_folder(folder)
    return folder


def heed_findings(given: Order, folder: Path, store: Store) -> None:
    """Look through the files for what the job is to be refused on: as long as a report takes.

    Raises RefusedFinding, also where they cannot be looked through.
    """
    if not given.refuse_on:
        return
    try:
        told = refusals.refuse_late(
            store, list(given.files), folder, given.line["recipe"], list(given.refuse_on)
        )
    except ServiceError as error:
        told = error.message
    if told is not None:
        raise RefusedFinding(told)
