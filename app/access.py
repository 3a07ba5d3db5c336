"""Who gets in, and what each route asks of a key: declared with the router, checked when the app is made.

    router = APIRouter(prefix="/files", dependencies=[needs("files")])

GET asks for `files:read`, every other method for `files:write`, save the routes marked `changes_nothing`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.params import Depends as DependsParameter
from fastapi.routing import iter_route_contexts
from fastapi.security import HTTPBearer
from sqlalchemy.exc import DBAPIError
from starlette.types import ASGIApp, Receive, Scope, Send

from app.answers import DATABASE_AWAY, answer, refuse_away
from app.audit import is_change
from app.auth import SCOPES, KnownCaller, authenticate, caller
from app.dashboard.files import FILES
from app.dependencies import open_session
from app.errors import NotAllowed, ServiceError

# The only paths without a key: the dashboard's are scripts and styles, the same for everybody. Those of the
# API reference want none from this machine itself. /metrics does: behind a proxy everybody comes from here.
OPEN = frozenset({"/healthz", "/readyz", *FILES})
OPEN_ON_LOOPBACK = frozenset({"/docs", "/openapi.json"})
ANY_KEY = "any"
# For the OpenAPI document alone; whether a key is right is not its business.
KEY_IN_HEADER = HTTPBearer(auto_error=False, scheme_name="api_key", description="docs/security.md")


@dataclass(frozen=True)
class Needs:
    """A route's wish for a key that may do it; a dependency."""

    resource: str

    def scope(self, method: str, endpoint: Callable[..., Any] | None) -> str | None:
        if self.resource == ANY_KEY:
            return None
        verb = "write" if is_change(method, endpoint) else "read"
        return self.resource if self.resource in SCOPES else f"{self.resource}:{verb}"

    async def __call__(self, request: Request, caller: KnownCaller) -> None:
        """Raises NotAllowed, naming the scope."""
        scope = self.scope(request.method, request.scope["endpoint"])
        if scope is not None and not caller.may(scope):
            raise NotAllowed(f"This API key lacks the scope `{scope}`; an admin can make one that has it.")


def needs(resource: str) -> DependsParameter:
    """`files`, `jobs`, …: what stands before the colon of a scope; ANY_KEY for what every key may do."""
    dependency: DependsParameter = Depends(Needs(resource))
    return dependency


class Gate:
    """Lets nobody in without a key, before a byte of the body is read, whichever routes there are.

    Dependencies would be too late: FastAPI reads and parses the whole body before the first of them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http" or _is_open(scope):
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        try:
            request.state.caller = await authenticate(request)
        except ServiceError as error:
            await answer(error)(scope, receive, send)
            return
        except DATABASE_AWAY as error:
            await answer(refuse_away(error))(scope, receive, send)
            return
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            await answer(refuse_away(error))(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return path in OPEN or (path in OPEN_ON_LOOPBACK and _on_loopback(scope))


def _on_loopback(scope: Scope) -> bool:
    """Whether the connection arrived at an address of this machine that no other machine can reach."""
    host, port = scope.get("server") or (None, None)
    if host is None or port is None:  # a Unix socket
        return port is None and host is not None
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def check_routes(app: FastAPI) -> None:
    """Raises RuntimeError for a route that does not say what it asks of a key: before anybody is served."""
    for route in iter_route_contexts(app.routes):
        if route.path in OPEN | OPEN_ON_LOOPBACK:
            continue
        calls = [*calls_of(getattr(route, "dependant", None))]
        declared = [call for call in calls if isinstance(call, Needs)]
        if caller not in calls or len(declared) != 1:
            raise RuntimeError(f"{route.path} declares no scope, or two: app/access.py says how")
        for method in route.methods or ():
            scope = declared[0].scope(method, route.endpoint)
            if scope is not None and scope not in SCOPES:
                raise RuntimeError(f"{method} {route.path} asks for a scope that does not exist: {scope}")
            if is_change(method, route.endpoint) and open_session not in calls:
                raise RuntimeError(f"{method} {route.path} changes something without `OpenSession`: no audit")


def calls_of(dependant: Dependant | None) -> Iterator[object]:
    """All that a route's dependencies call, and theirs."""
    if dependant is not None:
        for inner in dependant.dependencies:
            yield inner.call
            yield from calls_of(inner)
