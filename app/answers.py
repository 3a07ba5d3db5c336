"""Every failure leaves as OpenAI's error body with an `x-request-id`: refusals, 404 and 405, crashes too."""

import secrets
from collections.abc import Sequence
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import InvalidRequest, NotFound, ServiceError, Unavailable
from app.storage import StoreAway

log = structlog.get_logger()


# What a database that is away looks like; besides these a DBAPIError with `connection_invalidated`.
DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeout)


def answer(error: ServiceError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers=error.headers)


def refuse_away(error: Exception) -> Unavailable:
    log.warning("database_unavailable", error=type(error).__name__)
    return Unavailable("The database cannot be reached right now; try again.")


def _name_of(location: Sequence[int | str]) -> str | None:
    """("body", "method", "type") → "method.type"."""
    parts = [str(part) for part in location[1:]]
    return ".".join(parts) or None


def refuse_invalid(error: RequestValidationError) -> InvalidRequest:
    """One pydantic problem in one sentence; the value itself is never echoed (it may be a secret)."""
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return InvalidRequest("The body is not valid JSON.", code="invalid_json")
    param = _name_of(problem["loc"])
    if problem["type"] == "unknown_parameter":
        key = str(problem["ctx"]["key"])
        param = f"{param}.{key}" if param else key
        return InvalidRequest(problem["msg"], param=param, code="unknown_parameter")
    if problem["type"] == "model_attributes_type" and param is None:
        # curl -d says that it sends a form.
        message = "Send a JSON object, with `Content-Type: application/json`."
        return InvalidRequest(message, code="invalid_json")
    message = str(problem["msg"]).removeprefix("Value error, ")
    code = "missing_required_parameter" if problem["type"] == "missing" else "invalid_value"
    return InvalidRequest(f"{param}: {message}" if param else message, param=param, code=code)


def _refuse_http(error: HTTPException) -> ServiceError:
    if error.status_code == 404:
        return NotFound("No such URL. The base URL ends in /v1; see /docs for all calls.", code="unknown_url")
    refusal = InvalidRequest(str(error.detail))
    if error.status_code == 405:
        refusal = InvalidRequest("This URL does not take that method; see /docs.", code="method_not_allowed")
    refusal.status = error.status_code  # type: ignore[misc]  # one shape for whatever Starlette refuses
    refusal.headers = dict(error.headers or {})
    return refusal


def install_handlers(app: FastAPI) -> None:
    """Make every failure, 404 and 405 and crashes included, answer in OpenAI's shape."""

    @app.exception_handler(ServiceError)
    async def _refused(_: Request, error: ServiceError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(refuse_invalid(error))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return answer(_refuse_http(error))

    async def _away(_: Request, error: Exception) -> JSONResponse:
        return answer(refuse_away(error))

    for kind in DATABASE_AWAY:
        app.add_exception_handler(kind, _away)

    @app.exception_handler(StoreAway)
    async def _store_away(_: Request, __: StoreAway) -> JSONResponse:
        return answer(Unavailable("The object store is away; try again.", code="store_unavailable"))

    @app.exception_handler(DataError)
    async def _unheard_of(_: Request, error: DataError) -> JSONResponse:
        # A NUL in an id or a cursor: no such thing can be stored, so no such thing is there.
        return answer(InvalidRequest("A value of this request cannot be the name of anything here."))

    @app.exception_handler(DBAPIError)
    async def _database(request: Request, error: DBAPIError) -> JSONResponse:
        return await (_away(request, error) if error.connection_invalidated else _crashed(request, error))

    async def _crashed(_: Request, error: Exception) -> JSONResponse:
        log.error("unhandled", exc_info=error)
        body = ServiceError("Something went wrong here, not with your request.", code="internal_error")
        return answer(body)


class RequestIds:
    """Gives every answer, errors and crashes too, an `x-request-id`; the innermost catch of all crashes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers: list[Any] = message.setdefault("headers", [])
                headers.append((b"x-request-id", request_id.encode()))
                # Whatever else every answer to this request is to carry: what is left of a limit.
                headers += [(name.encode(), text.encode()) for name, text in state.get("headers", {}).items()]
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            # Starlette's own last resort answers text/plain; a half-sent answer can only be cut.
            log.error("unhandled", exc_info=error, path=scope["path"])
            if started:
                raise
            body = ServiceError("Something went wrong here, not with your request.", code="internal_error")
            await answer(body)(scope, receive, send_with_id)
        finally:
            structlog.contextvars.unbind_contextvars("request_id")
