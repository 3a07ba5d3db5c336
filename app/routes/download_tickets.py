"""Download tickets: asked for with a key, shown in a link."""

from fastapi import APIRouter
from pydantic import Field

from app import tickets, wire
from app.access import ANY_KEY, needs
from app.audit import about
from app.auth import KnownCaller
from app.body import Body
from app.dependencies import OpenSession
from app.errors import InvalidRequest, NotAllowed
from app.tables import JsonObject

router = APIRouter(prefix="/download_tickets", tags=["downloads"], dependencies=[needs(ANY_KEY)])


class TicketRequest(Body):
    """What is to be downloaded."""

    path: str = Field(
        pattern=r"^/v1/[^?#\s\\]{1,1024}$",
        description="The path of a file's content, a model's zip or a model's file, as it stands in a URL",
    )


@router.post("")
async def create_download_ticket(
    body: TicketRequest, session: OpenSession, caller: KnownCaller
) -> JsonObject:
    """A link that a browser can follow, which has no header for a key: good for one GET within a minute.

    `{"path": "/v1/models/ft:tiny-gpt2:finetuned::1a2b3c4d/download"}` is answered with
    `{"object": "download_ticket", "url": "/v1/models/…/download?ticket=ftd_…", "expires_at": 1796083200}`

    It needs the scope that the download itself needs, and may do no more. Whether there is anything at that
    path shows when it is fetched. A download that breaks off is begun again with another ticket, from where
    it broke by `Range` where the path serves ranges.
    """
    path = tickets.decoded(body.path)
    scope = None if path is None else tickets.scope_of(path)
    if path is None or scope is None:
        raise InvalidRequest(
            "There is nothing to download at that path; it is /v1/files/<id>/content,"
            " /v1/models/<model>/download or /v1/models/<model>/files/<path>.",
            param="path",
            code="not_downloadable",
        )
    if not caller.may(scope):
        raise NotAllowed(f"This API key lacks the scope `{scope}`; an admin can make one that has it.")
    secret, expires_at = await tickets.make(session, caller.key_id, path)
    about(session, path)
    return {
        "object": "download_ticket",
        "url": tickets.url_of(path, secret),
        "expires_at": wire.seconds(expires_at),
    }
