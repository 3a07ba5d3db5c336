"""Whether the service lives, and what of it can be used; the only routes without a key."""

import asyncio

from fastapi import APIRouter, Request, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.database import Database, revisions
from app.dispatch import Dispatcher
from app.errors import StorageLow
from app.fleet import Fleet
from app.settings import Settings
from app.storage import Store
from app.tables import JsonObject

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def alive() -> JsonObject:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(request: Request, response: Response) -> JsonObject:
    """Whether to send requests here: 503 without the `database`, or with a `schema` older than this release
    (`finetuned prepare` brings it up); a newer one is well, so that releases can change one by one.

    200 with `degraded` where only some of it works: without the `broker` jobs are accepted but must wait,
    without the `store` no bytes come or go, with a full `disk` new files and jobs are refused, without a
    `generator` completions are.
    """
    state = request.app.state
    database: Database = state.database
    try:
        async with database.transaction() as session:
            found = await session.scalar(text("SELECT to_regclass('alembic_version')"))
            query = text("SELECT version_num FROM alembic_version")
            revision = None if found is None else await session.scalar(query)
    except (SQLAlchemyError, OSError):
        response.status_code = 503
        return {"status": "unavailable", "unavailable": ["database"]}
    if revision is None or revision in revisions()[1:]:
        response.status_code = 503
        return {"status": "unavailable", "unavailable": ["schema"]}
    dispatcher: Dispatcher = state.dispatcher
    fleet: Fleet = state.generator
    store: Store = state.store
    parts = {
        "broker": dispatcher.ping_broker(),
        "store": asyncio.to_thread(store.answers),
        "disk": asyncio.to_thread(_has_room, store, state.settings),
        "generator": fleet.answers(),
    }
    answers = zip(parts, await asyncio.gather(*parts.values()), strict=True)
    degraded = [name for name, answered in answers if not answered]
    return {"status": "ok", **({"degraded": degraded} if degraded else {})}


def _has_room(store: Store, settings: Settings) -> bool:
    try:
        store.refuse_low_space(settings.min_free_bytes)
    except (StorageLow, OSError):
        return False
    return True
