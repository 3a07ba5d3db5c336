"""Which model names exist, and where their folders lie.

A `source` says where a model comes from: `builtin:tiny-gpt2`, `folder:<name>` below FINETUNED_BASE_MODELS,
`hub:<id>` from the Hugging Face hub, `store:<key>` for what was trained here.
"""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Session

from app import model_folder, seal
from app.errors import InvalidRequest, NotFound
from app.guard import everybody
from app.model_folder import UnusableModel
from app.permissions import permitted
from app.settings import Settings
from app.storage import Store
from app.tables import Checkpoint, Job, Model
from app.tiny import model as tiny

# The hub's own rule: what has "--" in it could share another's folder here.
HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
BUILTIN_SINCE = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Source:
    """A model that can be trained from or asked to write. `base` is the name that `ft:` names begin with,
    `trained_from` the source of the model that its job began with; `seal`, of what was trained here, is what
    its folder is known by (app/seal.py), where one model was asked for."""

    name: str
    source: str
    base: str
    owned_by: str
    created: datetime
    trained_from: str | None = None
    seal: str | None = None


def builtin_folder(settings: Settings) -> Path:
    return settings.home / "builtin" / tiny.NAME


def locate(source: str, settings: Settings, store: Store) -> Path:
    """The folder of a source, as long as it takes to have it on this machine.

    Raises FileNotFoundError when it is gone or (hub) was never fetched, OSError.
    """
    kind, _, name = source.partition(":")
    if kind == "builtin":
        return tiny.ensure(builtin_folder(settings))
    path = store.fetch_folder(name) if kind == "store" else _outside(source, settings)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(source)
    return path


def _outside(source: str, settings: Settings) -> Path:
    """Where a model from outside lies, or will. Raises FileNotFoundError where that can be nowhere."""
    kind, _, name = source.partition(":")
    if kind == "folder" and settings.base_models is not None:
        return settings.base_models / name
    if kind == "hub":
        return hub_folder(name, settings)
    raise FileNotFoundError(source)


def hub_folder(hub_id: str, settings: Settings) -> Path:
    """Where the worker puts what it fetched: one flat folder a model."""
    return settings.home / "hub" / hub_id.replace("/", "--")


def base_names(settings: Settings) -> list[Source]:
    """All base models: the built-in one, the folders, the named hub models."""
    found = [Source(tiny.NAME, f"builtin:{tiny.NAME}", tiny.NAME, "finetuned", BUILTIN_SINCE)]
    if settings.base_models is not None and settings.base_models.is_dir():
        for folder in sorted(settings.base_models.iterdir()):
            if (folder / "config.json").is_file():
                since = datetime.fromtimestamp((folder / "config.json").stat().st_mtime, UTC)
                found.append(Source(folder.name, f"folder:{folder.name}", folder.name, "local", since))
    taken = {source.name for source in found}
    found += [_hub(name) for name in settings.hub_models if name not in taken]
    return found


def _hub(name: str) -> Source:
    return Source(name, f"hub:{name}", name.rsplit("/", 1)[-1], "huggingface", BUILTIN_SINCE)


# What was trained here, with the same columns: published models, and checkpoints that are kept.
_models = (
    select(Model.name, Model.key, Model.base, Model.owner, Model.created_at, Job.source)
    .outerjoin(Job, Job.id == Model.job_id)
    .where(Model.deleted_at.is_(None))
)
_saved = (
    select(
        Checkpoint.name,
        Checkpoint.key,
        Job.model.label("base"),
        Job.owner,
        Checkpoint.created_at,
        Job.source,
    )
    .join(Job, Job.id == Checkpoint.job_id)
    .where(Checkpoint.deleted_at.is_(None))
)


def _stored(row: Row[str, str | None, str, str, datetime, str | None]) -> Source:
    base = root_name(row.base)
    return Source(row.name, f"store:{row.key}", base, row.owner, row.created_at, row.source)


def permitted_to(session: Session, owner: str) -> list[Source]:
    """What others trained and this owner may use, the newest first."""
    with everybody(session):  # both the permission and what is permitted are others'
        found = [
            _stored(row)
            for query in (
                _models.where(permitted(Model.name, owner), Model.owner != owner),
                _saved.where(permitted(Checkpoint.name, owner), Job.owner != owner),
            )
            for row in session.execute(query)
        ]
    return sorted(found, key=lambda source: source.created, reverse=True)


def find(session: Session, name: str, owner: str, settings: Settings) -> Source:
    """The model of that name, for that owner: base models are everybody's, and what another owner trained
    may be permitted to them.

    Raises NotFound (model_not_found).
    """
    for source in base_names(settings):
        if source.name == name:
            return source
    published = _models.add_columns(Model.manifest["files"]).where(Model.name == name)
    saved = _saved.add_columns(Checkpoint.manifest_sha256).where(Checkpoint.name == name)
    own = (published.where(Model.owner == owner), saved.where(Job.owner == owner))
    found = _sealed(session, *own)
    if found is None:
        others = (
            published.where(permitted(Model.name, owner)),
            saved.where(permitted(Checkpoint.name, owner)),
        )
        with everybody(session):  # both the permission and what is permitted are others'
            found = _sealed(session, *others)
    if found is not None:
        return found
    if HUB_ID.fullmatch(name):
        return _hub(name)
    raise NotFound(
        f"The model {name!r} does not exist or is not yours; GET /v1/models lists those that are.",
        param="model",
        code="model_not_found",
    )


def _sealed(session: Session, published: Select[Any], saved: Select[Any]) -> Source | None:
    """The first row that either finds, whose last column is what it is sealed by."""
    for query, sealed in ((published, seal.of_files), (saved, seal.of_bytes)):
        row = session.execute(query).one_or_none()
        if row is not None:
            return replace(_stored(row), seal=sealed(row[-1]) if row[-1] else None)
    return None


def find_for_job(session: Session, name: str, owner: str, settings: Settings) -> Source:
    """As `find`, for a job: an unknown model is 400 there, and so is a folder we cannot train."""
    try:
        source = find(session, name, owner, settings)
    except NotFound as error:
        raise InvalidRequest(error.message, param="model", code="model_not_found") from error
    if source.source.startswith(("folder:", "hub:")):
        folder = _outside(source.source, settings)
        if source.source.startswith("hub:") and not (folder / "config.json").is_file():
            return source  # the job will fetch it, and look then
        try:
            model_folder.check(folder)
        except UnusableModel as error:
            raise InvalidRequest(
                f"The model {name!r} cannot be trained: {error}", param="model", code="model_not_supported"
            ) from error
    return source


def find_checkpoint(session: Session, checkpoint: str, model: str, owner: str) -> Source:
    """What `from_checkpoint` names, `<job>:<step>`, where `model` is what that job began with.

    Raises InvalidRequest.
    """
    job_id, _, step = checkpoint.partition(":")
    saved = session.execute(
        select(Checkpoint.name, Checkpoint.key, Checkpoint.created_at, Job.model)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(
            Job.id == job_id,
            Job.owner == owner,
            Checkpoint.step == int(step),
            Checkpoint.deleted_at.is_(None),
        )
    ).one_or_none()
    if saved is None:
        raise InvalidRequest(
            f"There is no checkpoint {checkpoint!r}; GET /v1/fine_tuning/jobs/{{id}}/checkpoints lists those"
            " that are kept.",
            param="from_checkpoint",
            code="checkpoint_not_found",
        )
    base = root_name(saved.model)
    if model not in (saved.model, base, saved.name):
        raise InvalidRequest(
            f"The checkpoint {checkpoint!r} is of {saved.model!r}, not of {model!r}; give that as `model`.",
            param="model",
            code="contradictory_value",
        )
    return Source(saved.name, f"store:{saved.key}", base, owner, saved.created_at)


def root_name(model: str) -> str:
    """The base model's name that an `ft:` name carries, or the name itself without its hub owner."""
    return model.split(":")[1] if model.startswith("ft:") else model.rsplit("/", 1)[-1]


def tuned_name(job: Job, organization: str, digits: int = 8) -> str:
    """`ft:<base>:<organization>:<suffix>:<the last digits of the job's id>`."""
    return f"ft:{root_name(job.model)}:{organization}:{job.suffix or ''}:{job.id[-digits:]}"
