"""The API process, put together. `uvicorn --factory app.main:create_app` starts it."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import structlog
from fastapi import APIRouter, Depends, FastAPI

from app import openapi, posture, reference
from app.access import KEY_IN_HEADER, Gate, check_routes
from app.answers import RequestIds, install_handlers
from app.auth import caller
from app.database import Database
from app.dispatch import dispatching
from app.feed import feeding
from app.fleet import Fleet
from app.glance import Glances, glancing
from app.inspection.inspector import Inspector
from app.inspection.reports import Reports
from app.journal import configure_logs
from app.lifecycle.offers import MISSED
from app.limits import BodyLimit
from app.routes import (
    audit_log,
    chat,
    completions,
    dashboard,
    deliveries,
    diagnosis,
    download_tickets,
    files,
    health,
    inspections,
    jobs,
    keys,
    metrics,
    models,
    permissions,
    pins,
    progress,
    recipe_form,
    storage_use,
    uploads,
    webhooks,
    workers,
)
from app.settings import Settings
from app.standing import Standing
from app.storage import Store, StoreAway, StoreRefused, open_store
from app.tracing import Tracing
from app.upstream import Upstreams
from app.watch.figures import Figures
from app.watch.traffic import Requests, Traffic

log = structlog.get_logger()


async def _probe(store: Store) -> None:
    """Raises StoreRefused, which ends the start. A store that is away is waited for: /readyz tells."""
    try:
        await asyncio.to_thread(store.probe)
    except StoreRefused as error:
        log.error("store_refused", error=str(error))
        raise
    except StoreAway as error:
        log.warning("store_away", error=str(error))


async def _look(settings: Settings) -> None:
    """Raises Unsafe, which ends the start."""
    try:
        await asyncio.to_thread(posture.check, settings)
        await asyncio.to_thread(posture.look_at_role, settings)
    except posture.Unsafe as error:
        log.error("unsafe", error=str(error))
        raise


@cache
def _settle() -> None:
    """Take what was imported and set up out of the garbage collector's sight, once a process: it all stays,
    and looking through it stopped every request for 50 to 100 ms, with requests of many objects all the time.
    """
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def _running(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    await _look(settings)
    await _probe(app.state.store)
    app.state.database = Database(settings)
    app.state.inspector = Inspector()
    app.state.reports = Reports(app.state.inspector, app.state.store)
    app.state.generator = Fleet(settings.generator_urls, app.state.traffic.measure)
    app.state.upstreams = Upstreams(settings.upstreams)
    app.state.standing = Standing(MISSED * settings.heartbeat)
    try:
        async with (
            glancing(settings) as app.state.glancing,
            dispatching(settings, app.state.database, app.state.store, app.state.traffic) as dispatcher,
            feeding(app.state.database) as feed,
        ):
            app.state.dispatcher, app.state.feed = dispatcher, feed
            _settle()
            yield
    finally:
        await app.state.reports.close()
        await app.state.generator.close()
        await app.state.upstreams.close()
        await app.state.database.close()
        await asyncio.to_thread(app.state.tracing.close)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The whole API for these settings (by default those of the environment)."""
    settings = settings or Settings()
    configure_logs(settings.log_level)
    app = FastAPI(
        title="finetuned",
        version="0.1.0",
        description="OpenAI's fine-tuning API on your own machine, with the weights.",
        lifespan=_running,
        openapi_url=None,  # `reference` serves both
        docs_url=None,  # FastAPI's own page loads its script from elsewhere; `reference` works offline
        redoc_url=None,
        redirect_slashes=False,  # a redirected POST would lose its body or send it twice
    )
    app.state.settings = settings
    app.state.store = open_store(settings)
    app.state.figures, app.state.traffic = Figures(settings), Traffic()
    app.state.tracing = Tracing(settings, "api")
    # The gate needs a key for everything that app/access.py does not name; this finds a gate that is missing.
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(KEY_IN_HEADER), Depends(caller)])
    training = (jobs, pins, progress, diagnosis, permissions, recipe_form)
    parts = (files, uploads, inspections, *training, models, completions, chat, webhooks, deliveries)
    machines = (workers, storage_use, download_tickets)
    for part in (*parts, *machines, keys, audit_log):
        v1.include_router(part.router)
    app.include_router(v1)
    app.include_router(health.router)
    app.include_router(metrics.router, dependencies=[Depends(KEY_IN_HEADER), Depends(caller)])
    app.include_router(reference.router)
    app.include_router(dashboard.router)
    check_routes(app)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    install_handlers(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(Gate)
    app.add_middleware(Glances, settings=settings, endpoint=jobs.retrieve_job)
    app.add_middleware(RequestIds)
    app.add_middleware(Requests, traffic=app.state.traffic, service=app)
    return app
