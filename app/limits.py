"""No request is larger than it may be: JSON bodies are bounded before anything parses them."""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.answers import answer
from app.errors import NotPlain, TooLarge

MAX_JSON_BYTES = 16 * 1024 * 1024
# Uploads count their own bytes while they stream to disk.
STREAMED = re.compile(r"/v1/(files|uploads/[^/]+/parts)")


class BodyLimit:
    """Counts what arrives, whatever Content-Length says; compressed bodies are refused, being unbounded."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        encodings = {text.strip().lower() for name, text in scope["headers"] if name == b"content-encoding"}
        if encodings - {b"identity"}:
            await answer(NotPlain("Send the body uncompressed."))(scope, receive, send)
            return
        if STREAMED.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        seen = int(length) if (length := headers.get(b"content-length", b"")).isdigit() else 0
        if seen > MAX_JSON_BYTES:
            await answer(_too_large())(scope, receive, send)
            return
        seen, refused = 0, False

        async def counted() -> Message:
            nonlocal seen, refused
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_JSON_BYTES:
                refused = True
                raise _too_large()
            return message

        async def unless_refused(message: Message) -> None:
            # FastAPI turns whatever breaks while a body is read into its own 400: ours replaces it.
            if not refused:
                await send(message)

        await self.app(scope, counted, unless_refused)
        if refused:
            await answer(_too_large())(scope, receive, send)


def _too_large() -> TooLarge:
    return TooLarge(f"The body is larger than {MAX_JSON_BYTES:,} bytes.", code="body_too_large")
