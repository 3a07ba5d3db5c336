"""What a trainer is told: the job's row turned into files and folders."""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import catalogue, model_folder
from app.errors import ServiceError
from app.inspection import refusals
from app.lifecycle.claims import Claim
from app.lifecycle.history import note
from app.model_folder import UnusableModel
from app.settings import Settings
from app.storage import MANIFEST, Damaged, Store
from app.tables import Checkpoint, Event, File, Job, JsonObject, Model
from worker import hub, room
from worker.hub import Fetched
from worker.training import manifest


@dataclass(frozen=True)
class Order:
    """A claimed job, read once; `source` is where its base model comes from, `saved` its checkpoints, the
    newest first. `revision`: the hub's commit that an earlier attempt had; `sealed`: the manifest that the
    database knows of what was trained here."""

    job_id: str
    owner: str
    source: str
    base: str
    model_name: str
    keep: int
    line: dict[str, Any]
    files: tuple[File, ...]
    saved: tuple[Checkpoint, ...] = ()
    refuse_on: tuple[str, ...] = ()
    revision: str | None = None
    sealed: str | JsonObject | None = None
    integrations: tuple[JsonObject, ...] = ()
    request_id: str | None = None
    traceparent: str | None = None
    due_since: float = 0.0  # seconds since 1970


@dataclass(frozen=True)
class Corrupt:
    """A checkpoint that is not what was recorded; `found` is its manifest's SHA-256, if it has one."""

    row: Checkpoint
    found: str | None

    def tell(self, session: Session) -> None:
        step = self.row.step
        message = f"The checkpoint at step {step} is damaged; going on from the one before."
        facts = {"step": step, "expected": self.row.manifest_sha256, "found": self.found}
        note(session, self.row.job_id, "warn", "checkpoint_corrupt", message, facts)


class MissingFile(Exception):
    """A file that the job needs is gone."""


class RefusedFinding(Exception):
    """The files hold what the job was not to be trained on."""


def _file(session: Session, file_id: str) -> File:
    row = session.get(File, file_id)
    if row is None or row.key is None:
        raise MissingFile(f"The file {file_id} is gone; upload it again and make a new job.")
    return row


def read(session: Session, held: Claim, store: Store, settings: Settings) -> Order:
    """What the rows say; `bring` adds to `line` where it lies. Raises MissingFile."""
    row = session.get_one(Job, held.job_id)
    base = catalogue.root_name(row.model)
    name = _model_name(session, row, settings.organization)
    files = [_file(session, row.training_file)]
    line: dict[str, Any] = {
        "job": row.id,
        "recipe": row.recipe,
        "format": files[0].format,
        "columns": files[0].columns,
        "base_name": row.model,
        "name": name,
        "out": str(store.scratch(out_key(held))),
        "cache": str(store.scratch(_cache_key(row))),
        "keep": None,
        "fits": _fitting(session, row.id),
    }
    if row.validation_file is not None:
        files.append(_file(session, row.validation_file))
        line["validation_format"], line["validation_columns"] = files[1].format, files[1].columns
    # The newest checkpoint may be the one that turns out damaged: two is the least.
    keep = max(2, int(row.recipe["save_total_limit"]))
    refused = tuple(row.refuse_on or ())
    known = _revision(session, row.id), _sealed(session, row.source), tuple(row.integrations or ())
    saved = _saved(session, row.id)
    origin: dict[str, Any] = {
        "request_id": row.request_id,
        "traceparent": row.traceparent,
        "due_since": row.not_before.timestamp(),
    }
    given = row.id, row.owner, row.source, base, name, keep, line, tuple(files), saved, refused
    return Order(*given, *known, **origin)


def _model_name(session: Session, row: Job, organization: str) -> str:
    """The job's own, longer where its last eight digits are those of a job before: of 10,000 jobs with one
    suffix two are so in one case of a hundred, and the later one would fail when it is trained."""
    name = catalogue.tuned_name(row, organization)
    taken = session.scalar(select(Model.job_id.is_distinct_from(row.id)).where(Model.name == name))
    return catalogue.tuned_name(row, organization, digits=16) if taken else name


def out_key(held: Claim) -> str:
    """Under which an attempt's checkpoints lie."""
    return f"jobs/{held.job_id}/e{held.epoch}"


def _revision(session: Session, job_id: str) -> str | None:
    """The commit that the first attempt fetched; the first event that says so is the worker's own."""
    query = select(Event.data).where(Event.job_id == job_id, Event.code == "base_model")
    said = session.scalar(query.order_by(Event.seq).limit(1)) or {}
    return said.get("revision") if isinstance(said.get("revision"), str) else None


def _sealed(session: Session, source: str) -> str | JsonObject | None:
    kind, _, key = source.partition(":")
    if kind != "store":
        return None
    found: str | JsonObject | None = session.scalar(select(Model.manifest).where(Model.key == key))
    return found or session.scalar(select(Checkpoint.manifest_sha256).where(Checkpoint.key == key))


def _fitting(session: Session, job_id: str) -> int | None:
    """Examples per micro-step that an earlier attempt, out of memory, meant to go on with; None: none was."""
    query = select(Event.data).where(Event.job_id == job_id, Event.code == "micro_batch_halved")
    said = session.scalar(query.order_by(Event.seq.desc()).limit(1)) or {}
    size = said.get("train_batch_size")  # a trainer's word, which may be anything
    return size if isinstance(size, int) and size > 0 else None


def _cache_key(row: Job) -> str:
    """Encoded data lies under its files' ids, so that it is deleted with them (app.purge)."""
    return f"cache/{'+'.join(filter(None, (row.training_file, row.validation_file)))}"


def _saved(session: Session, job_id: str) -> tuple[Checkpoint, ...]:
    rows = session.scalars(
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.deleted_at.is_(None), Checkpoint.key.is_not(None))
        .order_by(Checkpoint.step.desc())
    )
    return tuple(rows)


def bring(
    given: Order, store: Store, settings: Settings, held: ExitStack
) -> tuple[JsonObject, list[Corrupt]]:
    """Have all that the trainer reads on this machine, for as long as `held` is open: the line with its
    paths, and what was found damaged on the way. Takes as long as the downloads.

    Raises MissingFile, UnusableModel, RefusedFinding, room.NoRoom; OSError where the store does not answer.
    """
    paths = [_path(row, store, held) for row in given.files]
    line = {**given.line, **dict(zip(("data", "validation"), map(str, paths), strict=False))}
    base = base_folder(given, settings, store, held)
    heed_findings(given, base.folder, store)
    resume, corrupt = _resumable(given.saved, store, held)
    found = {"model": str(base.folder), "revision": base.revision, "resume": [str(path) for path in resume]}
    line |= found
    room.check(line)
    return line, corrupt


def _path(row: File, store: Store, held: ExitStack) -> Path:
    try:
        return held.enter_context(store.hold(row.key or "", row.sha256))
    except FileNotFoundError as error:
        raise MissingFile(f"The file {row.id} is gone; upload it again and make a new job.") from error


def _resumable(
    saved: Sequence[Checkpoint], store: Store, held: ExitStack
) -> tuple[list[Path], list[Corrupt]]:
    """Checkpoint folders, newest first, whose manifest is the one that was recorded. Where they must be
    copied here first, only what is needed: the newest, and the best, which may be published in the end."""
    found: list[Path] = []
    corrupt = []
    for row in saved:
        key = row.key or ""
        if found and not row.best and store.place(key) is None:
            continue
        digest = _manifest_sha256(store, key)
        if digest == row.manifest_sha256:
            with contextlib.suppress(FileNotFoundError, Damaged):
                found.append(held.enter_context(store.hold_folder(key)))
                continue
        corrupt.append(Corrupt(row, digest))
    return found, corrupt


def _manifest_sha256(store: Store, key: str) -> str | None:
    try:
        return hashlib.sha256(store.get(f"{key}/{MANIFEST}")).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


def base_folder(given: Order, settings: Settings, store: Store, held: ExitStack) -> Fetched:
    """The base model's folder, fetched from the hub or the store where needed; takes as long as the download,
    or as hashing what was trained here.

    Raises UnusableModel with what to do.
    """
    if given.source.startswith("hub:"):
        return hub.fetch(given.source.removeprefix("hub:"), settings, given.revision)
    try:
        if given.source.startswith("store:"):
            # It is read again with each checkpoint: held, not only found.
            held.enter_context(store.hold_folder(given.source.removeprefix("store:")))
        folder = catalogue.locate(given.source, settings, store)
    except FileNotFoundError as error:
        raise UnusableModel("its folder is gone.") from error
    if given.source.startswith("store:"):
        _check_sealed(folder, given.sealed)
    model_folder.check(folder)
    return Fetched(folder, None)


def _check_sealed(folder: Path, sealed: str | JsonObject | None) -> None:
    """A folder of our own is taken for what it was when it was made, or not at all."""
    try:
        digest = manifest.verify(folder)
        stated = json.loads((folder / manifest.NAME).read_bytes())
    except (manifest.Damaged, OSError, ValueError) as error:
        raise UnusableModel(f"its folder was changed since it was trained ({error}).") from error
    if sealed not in (digest, stated):
        raise UnusableModel("its manifest is not the one that was recorded when it was trained.")


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
