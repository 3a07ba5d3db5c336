"""No route answers without a key, save those that app/access.py names; no route without a scope exists."""

from pathlib import Path

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI

from app import access
from app.access import check_routes, needs
from app.auth import SCOPES, caller
from app.main import create_app
from app.priority import HIGH_SCOPE
from app.settings import Settings
from tests.security.conftest import inventory

# What may answer without a key: to be changed by hand, knowingly.
WITHOUT_KEY = {"GET /healthz", "GET /readyz"}
# The dashboard's own files, and the one script that comes from a wheel; nothing of anybody's data.
DASHBOARD = Path(__file__).parents[2] / "app" / "dashboard"
WITHOUT_KEY |= {"GET /", "GET /dashboard/plotly.min.js"} | {
    f"GET /dashboard/{path.relative_to(DASHBOARD).as_posix()}"
    for path in DASHBOARD.rglob("*.*")
    if path.suffix in {".css", ".js", ".svg"}
}
# From this machine itself too; the reference says nothing that the repository does not.
ON_LOOPBACK = {"GET /docs", "GET /openapi.json"}


def make_app() -> FastAPI:
    """No database: nobody without a key is to get as far."""
    return create_app(Settings(database_url="postgresql://nobody@localhost/none", redis_url="redis://none"))


async def answered(app: FastAPI, server: str = "http://10.1.2.3:8000") -> set[str]:
    """Calls that answer anything but 401 to somebody without a key."""
    open_calls = set()
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url=server) as nobody:
        for call in inventory(app):
            path = call.path.replace(":path}", "}").format(**dict.fromkeys(call.params, "x"))
            answer = await nobody.request(call.method, path)
            if answer.status_code != 401:
                open_calls.add(call.name)
            elif call.path.startswith("/v1"):
                assert answer.json()["error"]["code"] == "missing_api_key"
    return open_calls


async def test_every_route_needs_a_key() -> None:
    app = make_app()
    assert len(inventory(app)) > 30
    assert await answered(app) == WITHOUT_KEY
    assert await answered(app, "http://127.0.0.1:8000") == WITHOUT_KEY | ON_LOOPBACK


async def test_a_route_that_is_open_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app()
    app.add_api_route("/v1/canary", lambda: {}, methods=["PUT"])
    assert await answered(app) == WITHOUT_KEY, "nothing is open by being forgotten"
    monkeypatch.setattr(access, "OPEN", access.OPEN | {"/v1/canary"})
    assert await answered(app) == WITHOUT_KEY | {"PUT /v1/canary"}


@pytest.mark.parametrize(
    "path",
    [
        "/healthz/",
        "//healthz",
        "/healthz/../v1/files",
        "/HEALTHZ",
        "/docs/x",
        "/dashboard",
        "/dashboard/",
        "/dashboard/files.py",
        "/dashboard/../main.py",
        "/dashboard/js/%2e%2e/files.py",
        "//dashboard/style.css",
    ],
)
async def test_what_looks_like_an_open_path_is_not_one(path: str) -> None:
    transport = httpx2.ASGITransport(make_app())
    async with httpx2.AsyncClient(transport=transport) as nobody:
        assert (await nobody.get(f"http://127.0.0.1:1{path}")).status_code == 401


def test_a_route_without_a_scope_keeps_the_app_from_being_made() -> None:
    async def canary() -> None: ...

    def with_route(*dependencies: object, method: str = "GET") -> FastAPI:
        app, router = make_app(), APIRouter(prefix="/v1", dependencies=list(dependencies))  # type: ignore[arg-type]
        router.add_api_route("/canary", canary, methods=[method])
        app.include_router(router)
        return app

    for wrong, why in (
        (with_route(), "declares no scope"),
        (with_route(Depends(caller)), "declares no scope"),
        (with_route(needs("files"), needs("jobs")), "or two"),
        (with_route(needs("canaries")), "scope that does not exist"),
        (with_route(needs("files"), method="POST"), "no audit"),
    ):
        with pytest.raises(RuntimeError, match=why):
            check_routes(wrong)
    check_routes(with_route(needs("files")))


def test_the_key_of_the_gate_is_asked_for_by_every_route_once_more() -> None:
    """The gate alone would do; a gate that somebody takes out must not open the house."""
    app = make_app()
    assert "Gate" in [getattr(middleware.cls, "__name__", "") for middleware in app.user_middleware]
    assert all(
        call.path in access.OPEN | access.OPEN_ON_LOOPBACK or call.path.startswith(("/v1/", "/metrics"))
        for call in inventory(app)
    )


def test_every_scope_is_asked_for_by_some_route() -> None:
    from fastapi.routing import iter_route_contexts

    asked = {
        needed.scope(method, route.endpoint)
        for route in iter_route_contexts(make_app().routes)
        for needed in access.calls_of(getattr(route, "dependant", None))
        if isinstance(needed, access.Needs)
        for method in route.methods or ()
    }
    # That one is asked for by a value of the body (tests/app/test_turns.py).
    assert set(SCOPES) - {HIGH_SCOPE} <= asked
