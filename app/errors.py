"""What can go wrong, and how it is told: always OpenAI's body {"error": {message, type, param, code}}.

ServiceError
├── InvalidRequest        400   bad input, or a thing in the wrong state (never 409: the SDK would retry it)
├── NotAuthenticated      401
├── NotAllowed            403
├── NotFound              404   also everything that belongs to somebody else
├── TooLarge              413
├── TooMany               429   with retry-after
├── StorageLow            507   with x-should-retry: false
└── Unavailable           503   with retry-after
"""

import secrets
from collections.abc import Sequence
from typing import Any, ClassVar

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = structlog.get_logger()


class ServiceError(Exception):
    """Base of all refusals; `param` names the field at fault, `code` is for machines."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code

    def body(self) -> dict[str, dict[str, str | None]]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, headers=self.headers)


class InvalidRequest(ServiceError):
    """Bad input, or a thing that is in the wrong state for what was asked."""

    status = 400
    type = "invalid_request_error"


class NotAuthenticated(ServiceError):
    """No key, or one that is unknown, expired or revoked."""

    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"
    headers: ClassVar[dict[str, str]] = {"WWW-Authenticate": "Bearer"}


class NotAllowed(ServiceError):
    """A valid key without the scope."""

    status = 403
    type = "invalid_request_error"
    default_code = "insufficient_scope"


class NotFound(ServiceError):
    """Unknown, or somebody else's: the two cannot be told apart."""

    status = 404
    type = "invalid_request_error"
    default_code = "not_found"


class TooLarge(ServiceError):
    """More bytes than the limit."""

    status = 413
    type = "invalid_request_error"
    default_code = "file_too_large"


class TooMany(ServiceError):
    """A queue that is full or a rate that is exceeded; the SDK waits and tries again."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    headers: ClassVar[dict[str, str]] = {"retry-after": "1"}


class StorageLow(ServiceError):
    """Too little free disk; retrying cannot help, so the SDK is told not to."""

    status = 507
    type = "server_error"
    default_code = "insufficient_storage"
    headers: ClassVar[dict[str, str]] = {"x-should-retry": "false"}


class Unavailable(ServiceError):
    """A part of the service is away for now."""

    status = 503
    type = "server_error"
    default_code = "service_unavailable"
    headers: ClassVar[dict[str, str]] = {"retry-after": "2"}


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
    refusal.headers = dict(error.headers or {})  # type: ignore[misc]
    return refusal


def install_handlers(app: FastAPI) -> None:
    """Make every failure, 404 and 405 and crashes included, answer in OpenAI's shape."""

    @app.exception_handler(ServiceError)
    async def _refused(_: Request, error: ServiceError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return refuse_invalid(error).response()

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return _refuse_http(error).response()

    async def _away(_: Request, error: Exception) -> JSONResponse:
        log.warning("database_unavailable", error=type(error).__name__)
        return Unavailable("The database cannot be reached right now; try again.").response()

    for kind in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(kind, _away)

    @app.exception_handler(DBAPIError)
    async def _database(request: Request, error: DBAPIError) -> JSONResponse:
        return await (_away(request, error) if error.connection_invalidated else _crashed(request, error))

    async def _crashed(_: Request, error: Exception) -> JSONResponse:
        log.error("unhandled", exc_info=error)
        body = ServiceError("Something went wrong here, not with your request.", code="internal_error")
        return body.response()


class RequestIds:
    """Gives every answer, errors and crashes too, an `x-request-id`; the innermost catch of all crashes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers: list[Any] = message.setdefault("headers", [])
                headers.append((b"x-request-id", request_id.encode()))
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
            await body.response()(scope, receive, send_with_id)
        finally:
            structlog.contextvars.unbind_contextvars("request_id")
