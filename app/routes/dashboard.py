"""The dashboard's page, scripts and styles: static, the same for everybody, and without any key.

What it shows it asks the API for, with the reader's key, like any other client (docs/dashboard.md).
"""

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from app.dashboard.files import FILES, content

router = APIRouter(include_in_schema=False)
# Scripts and styles come from here and from nowhere else, nothing else is loaded or spoken to, and no page
# may put this one into a frame. Plotly draws by the DOM and needs no exception but images of data.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    # Asked anew each time, and answered 304: after an upgrade nobody runs half of the old scripts.
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


async def file(request: Request) -> Response:
    """One of the dashboard's files."""
    found = await run_in_threadpool(content, request.scope["route"].path)
    headers = {**HEADERS, "etag": found.etag}
    if found.etag in [
        tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")
    ]:
        return Response(status_code=304, headers=headers)
    if found.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        packed = {**headers, "content-encoding": "gzip"}
        return Response(found.packed, headers=packed, media_type=found.kind)
    return Response(found.plain, headers=headers, media_type=found.kind)


for address in FILES:
    router.add_api_route(address, file, methods=["GET"])
