"""What can go wrong, and how it is told: always OpenAI's body {"error": {message, type, param, code}}.
`answers` puts them on the wire.

ServiceError
├── InvalidRequest        400   bad input, or a thing in the wrong state (never 409: the SDK would retry it)
├── NotAuthenticated      401
├── NotAllowed            403
├── NotFound              404   also everything that belongs to somebody else
├── TooLarge              413
├── NotPlain              415   a body in an encoding whose size says nothing
├── TooMany               429   with retry-after
├── StorageLow            507   with x-should-retry: false
└── Unavailable           503   with retry-after
"""

from collections.abc import Mapping
from typing import ClassVar

LONGEST = 4000  # characters of a message


class ServiceError(Exception):
    """Base of all refusals; `param` names the field at fault, `code` is for machines."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    headers: Mapping[str, str] = {}

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        if headers is not None:
            self.headers = headers
        # What it quotes may be a megabyte that somebody sent.
        self.message = message if len(message) <= LONGEST else f"{message[:LONGEST]} …"
        self.param = param[:200] if param is not None else None
        self.code = code or self.default_code

    def body(self) -> dict[str, dict[str, str | None]]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ServiceError):
    """Bad input, or a thing that is in the wrong state for what was asked."""

    status = 400
    type = "invalid_request_error"


class NotAuthenticated(ServiceError):
    """No key, or one that is unknown, expired or revoked."""

    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"
    headers: Mapping[str, str] = {"WWW-Authenticate": "Bearer"}


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


class NotPlain(ServiceError):
    """A compressed body: how large it would become nobody knows before it is too late."""

    status = 415
    type = "invalid_request_error"
    default_code = "unsupported_encoding"


class TooMany(ServiceError):
    """A queue that is full or a rate that is exceeded; the SDK waits and tries again."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    headers: Mapping[str, str] = {"retry-after": "1"}


class StorageLow(ServiceError):
    """Too little free disk; retrying cannot help, so the SDK is told not to."""

    status = 507
    type = "server_error"
    default_code = "insufficient_storage"
    headers: Mapping[str, str] = {"x-should-retry": "false"}


class Unavailable(ServiceError):
    """A part of the service is away for now."""

    status = 503
    type = "server_error"
    default_code = "service_unavailable"
    headers: Mapping[str, str] = {"retry-after": "2"}
