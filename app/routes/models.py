"""Models: list, retrieve, delete, download as one zip or file by file."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from sqlalchemy import Row, delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from app import catalogue, download, wire
from app.access import needs
from app.archive import zip_files
from app.auth import Caller, KnownCaller
from app.database import WAKE, run
from app.dependencies import CurrentSettings, OpenSession, OpenStore
from app.download import begun
from app.errors import InvalidRequest, NotFound
from app.guard import everybody
from app.lifecycle.claims import ENDED
from app.permissions import CheckpointPermission
from app.storage import MANIFEST, Store
from app.tables import Checkpoint, Job, JsonObject, Model

router = APIRouter(prefix="/models", tags=["models"], dependencies=[needs("models")])
SAVED_HERE = "store:"


@router.get("")
async def list_models(session: OpenSession, settings: CurrentSettings, caller: KnownCaller) -> JsonObject:
    """The caller's own models, then what other owners permit them to use, both newest first, and base
    models. Checkpoints of one's own are listed with their jobs.
    """
    rows = await session.scalars(
        select(Model)
        .where(Model.owner == caller.owner, Model.deleted_at.is_(None))
        .order_by(Model.seq.desc())
    )
    sources = await run(session, catalogue.permitted_to, caller.owner)
    others = [wire.base_model(source) for source in [*sources, *catalogue.base_names(settings)]]
    return {"object": "list", "data": [wire.tuned_model(row) for row in rows] + others}


async def _own(session: AsyncSession, name: str, caller: Caller) -> Model:
    row = await session.scalar(
        select(Model).where(Model.name == name, Model.owner == caller.owner, Model.deleted_at.is_(None))
    )
    if row is None:
        raise NotFound(
            f"There is no model {name!r} of yours here; base models cannot be deleted.",
            param="model",
            code="model_not_found",
        )
    return row


async def _manifest(
    session: AsyncSession, name: str, caller: Caller, store: Store
) -> tuple[str, dict[str, JsonObject]]:
    """The key and the files of a published model or a checkpoint: {name: {sha256, bytes}}."""
    row = await session.scalar(
        select(Model).where(Model.name == name, Model.owner == caller.owner, Model.deleted_at.is_(None))
    )
    if row is not None and row.key is not None:
        return row.key, row.manifest["files"]
    key = await session.scalar(
        select(Checkpoint.key)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Checkpoint.name == name, Job.owner == caller.owner, Checkpoint.deleted_at.is_(None))
    )
    if key is None:
        raise NotFound(
            f"There is no model {name!r} of yours to download.", param="model", code="model_not_found"
        )
    try:
        manifest = await asyncio.to_thread(store.read_manifest, key)
        return key, manifest["files"]
    except FileNotFoundError as error:  # retired a moment ago
        raise NotFound(f"The checkpoint {name!r} is gone.", param="model", code="model_not_found") from error


@router.get("/{model:path}/download", response_class=StreamingResponse)
async def download_model(
    model: str, session: OpenSession, store: OpenStore, caller: KnownCaller
) -> StreamingResponse:
    """The model folder as one zip, made while it is sent."""
    key, files = await _manifest(session, model, caller, store)
    name = model.replace(":", "-").replace("/", "-")
    for path in files:
        _key(store, key, path)

    def read(path: str) -> Iterator[bytes]:
        return store.read(f"{key}/{path}")

    return StreamingResponse(
        await begun(zip_files(read, [*files, MANIFEST], name)),
        media_type="application/zip",
        headers={"content-disposition": f'attachment; filename="{name}.zip"'},
    )


@router.get("/{model:path}/files")
async def list_model_files(
    model: str, session: OpenSession, store: OpenStore, caller: KnownCaller
) -> JsonObject:
    """Every file of a model with its size and SHA-256."""
    _, files = await _manifest(session, model, caller, store)
    return {
        "object": "list",
        "data": [
            {"object": "model.file", "path": name, "bytes": facts["bytes"], "sha256": facts["sha256"]}
            for name, facts in sorted(files.items())
        ],
        "has_more": False,
    }


@router.get("/{model:path}/files/{path:path}", response_class=FileResponse)
async def download_model_file(
    model: str, path: str, request: Request, session: OpenSession, store: OpenStore, caller: KnownCaller
) -> Response:
    """One file of a model; ranges are served, the ETag is its SHA-256."""
    key, files = await _manifest(session, model, caller, store)
    # Only names that the manifest knows are ever opened.
    if path not in files:
        raise NotFound(f"The model has no file {path!r}; GET …/files lists them.", param="path")
    etag = f'"{files[path]["sha256"]}"'
    if etag in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers={"etag": etag})
    return await download.send(
        request, store, _key(store, key, path), files[path]["bytes"], files[path]["sha256"]
    )


def _key(store: Store, key: str, name: str) -> str:
    """Raises NotFound for a link that leads out of the store: a trainer runs what others made, and may be
    made to plant one."""
    inner = f"{key}/{name}"
    try:
        store.check(inner)
    except ValueError as error:
        raise NotFound(f"{name!r} is no file of the model.", param="path") from error
    return inner


@router.get("/{model:path}")
async def retrieve_model(
    model: str, session: OpenSession, settings: CurrentSettings, caller: KnownCaller
) -> JsonObject:
    """A base model, one of the caller's own or one they may use, or a checkpoint."""
    row = await session.scalar(
        select(Model).where(Model.name == model, Model.owner == caller.owner, Model.deleted_at.is_(None))
    )
    if row is not None:
        return wire.tuned_model(row)
    return wire.base_model(await run(session, catalogue.find, model, caller.owner, settings))


def _user(session: Session, model: Model) -> Row[str, str] | None:
    """Id and owner of a job that trains from it, one of the model's owner if there is any."""
    users = select(Job.id, Job.owner).where(
        Job.source == f"{SAVED_HERE}{model.key}", Job.status.not_in(ENDED)
    )
    with everybody(session):  # it may have been permitted to others
        return session.execute(users.order_by(Job.owner != model.owner).limit(1)).one_or_none()


@router.delete("/{model:path}")
async def delete_model(model: str, session: OpenSession, caller: KnownCaller) -> JsonObject:
    """Delete a published model; one that a job trains from is refused (400 `model_in_use`)."""
    row = await _own(session, model, caller)
    await session.refresh(row, with_for_update=True)
    user = await run(session, _user, row)
    if user is not None:
        # Another owner's job has no name here.
        name = f"Job {user.id}" if user.owner == caller.owner else "A job of an owner whom you permitted it"
        raise InvalidRequest(
            f"{name} trains from this model; cancel it or wait for its end.",
            param="model",
            code="model_in_use",
        )
    row.deleted_at = datetime.now(UTC)
    await session.execute(delete(CheckpointPermission).where(CheckpointPermission.model_name == row.name))
    session.sync_session.info[WAKE] = True
    return {"id": model, "object": "model", "deleted": True}
