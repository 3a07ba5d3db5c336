"""Whether the service lives, and what of it can be used; the only routes without a key."""

import asyncio

from fastapi import APIRouter, Request, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.database import Database
from app.dispatch import Dispatcher
from app.storage import Store
from app.tables import JsonObject

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def alive() -> JsonObject:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(request: Request, response: Response) -> JsonObject:
    """503 without the database; 200 with `degraded` where only some of it works: without the `broker` jobs
    are accepted but must wait, without the `store` no bytes come or go."""
    database: Database = request.app.state.database
    dispatcher: Dispatcher = request.app.state.dispatcher
    try:
        async with database.transaction() as session:
            await session.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError):
        response.status_code = 503
        return {"status": "unavailable", "unavailable": ["database"]}
    store: Store = request.app.state.store
    parts = {"broker": dispatcher.ping_broker(), "store": asyncio.to_thread(store.answers)}
    answers = zip(parts, await asyncio.gather(*parts.values()), strict=True)
    degraded = [name for name, answered in answers if not answered]
    return {"status": "ok", **({"degraded": degraded} if degraded else {})}
