"""What a route may ask for besides its own input.

Coroutines all: a plain function would be sent to a thread by FastAPI, for as many microseconds as it takes
nanoseconds.
"""

from collections.abc import AsyncIterator
from typing import Annotated, NamedTuple

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from app import audit
from app.auth import KnownCaller
from app.database import Database
from app.fleet import Fleet
from app.guard import OWNER
from app.inspection.inspector import Inspector
from app.settings import Settings
from app.standing import Standing
from app.storage import Store
from app.tracing import Tracing
from app.upstream import Upstreams
from app.webhooks.courier import Courier


async def open_session(request: Request, caller: KnownCaller) -> AsyncIterator[AsyncSession]:
    database: Database = request.app.state.database
    async with database.transaction(caller.owner) as session:
        yield session
        audit.record(session, request, caller)


async def _everybodys(
    session: Annotated[AsyncSession, Depends(open_session, scope="function")],
) -> AsyncSession:
    session.info.pop(OWNER)  # it has not begun yet: no owner is named
    return session


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


async def _generator(request: Request) -> Fleet:
    generator: Fleet = request.app.state.generator
    return generator


async def _inspector(request: Request) -> Inspector:
    inspector: Inspector = request.app.state.inspector
    return inspector


async def _courier(request: Request) -> Courier:
    courier: Courier = request.app.state.dispatcher.courier
    return courier


async def _tracing(request: Request) -> Tracing:
    tracing: Tracing = request.app.state.tracing
    return tracing


async def _upstreams(request: Request) -> Upstreams:
    upstreams: Upstreams = request.app.state.upstreams
    return upstreams


class Shown(NamedTuple):
    """What a job needs beside its row to be shown."""

    settings: Settings
    standing: Standing


async def _shown(request: Request) -> Shown:
    return Shown(request.app.state.settings, request.app.state.standing)


# `scope="function"` commits before the answer is sent: a 200 is never followed by a failed commit.
OpenSession = Annotated[AsyncSession, Depends(open_session, scope="function")]
# For an admin's routes: it has the rows of all owners.
EverybodysSession = Annotated[AsyncSession, Depends(_everybodys, scope="function")]
ForShowing = Annotated[Shown, Depends(_shown)]
OpenTracing = Annotated[Tracing, Depends(_tracing)]
OpenCourier = Annotated[Courier, Depends(_courier)]
OpenStore = Annotated[Store, Depends(_store)]
CurrentSettings = Annotated[Settings, Depends(_settings)]
OpenInspector = Annotated[Inspector, Depends(_inspector)]
OpenGenerator = Annotated[Fleet, Depends(_generator)]
OpenUpstreams = Annotated[Upstreams, Depends(_upstreams)]
