"""The API of tests/app, and every route of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from tests.app.conftest import api, client, http, rows
from tests.app.test_keys import sql

__all__ = ["api", "client", "http", "rows", "sql"]


@pytest.fixture(scope="module")
def more_settings() -> dict[str, Any]:
    return {"webhook_allow": (ip_network("127.0.0.0/8"),)}


@dataclass(frozen=True)
class Call:
    """A method of a route; `action` is the function behind it, `params` the names in its path."""

    method: str
    path: str
    action: str
    params: tuple[str, ...]
    changes: bool

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


def inventory(app: FastAPI) -> list[Call]:
    """Every method of every route that the app answers, however it came to be there."""
    return sorted(_calls(app), key=lambda call: call.name)


def _calls(app: FastAPI) -> Iterator[Call]:
    from app.audit import is_change

    for route in iter_route_contexts(app.routes):
        assert route.path is not None, f"a route without a path, a mount perhaps: {route}"
        for method in route.methods or {"GET"}:
            yield Call(
                method,
                route.path,
                getattr(route.endpoint, "__name__", "?"),
                tuple(getattr(route, "param_convertors", {})),
                is_change(method, route.endpoint),
            )
