"""The poll of one job, the short way: what clients do a thousand times for everything else they do once.

One SELECT says whether the key may see the job and which version of its row there is; the answer is made anew
only when that has changed. This never refuses anybody and changes nothing: a request that it cannot answer
with 200 at once goes the usual way, which has the last word. That way is also the one that counts a key with
a limit and notes once a minute that a key is used.
"""

import hmac
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
import pydantic_core
from psycopg.rows import namedtuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from starlette.types import ASGIApp, Receive, Scope, Send

from app import wire
from app.apikey import parse_key, secret_sha256
from app.database import CONNECT_ARGUMENTS, database_url
from app.forecast import Place
from app.settings import Settings
from app.standing import Standing

PATH = re.compile(r"/v1/fine_tuning/jobs/(ftjob-[0-9a-f]{1,64})")
KEPT = 2_000  # answers, of about 10 kB each with their rows
CONNECTIONS = 6
BUSY, AWAY = 10.0, 1.0  # seconds
NOTED = 10.0  # seconds before another request is sent to note the use of the same key
# A row's version: each change of it is another transaction at another place.
GLANCE = """
    SELECT k.secret_sha256, j.status, j.xmin::text, j.ctid::text, k.last_used_at < now() - interval '1 minute'
    FROM api_keys k JOIN jobs j ON j.owner = k.owner
    WHERE k.id = %s AND j.id = %s AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
      AND k.requests_per_minute IS NULL AND k.last_used_at > now() - interval '5 minutes'
      AND k.scopes && '{jobs:read,jobs:write}'
"""
LOOK = "SELECT *, metadata AS job_metadata, xmin::text AS xmin_, ctid::text AS ctid_ FROM jobs WHERE id = %s"


class Kept(NamedTuple):
    """An answer, and what it was made from."""

    row: Any
    place: Place | None
    body: bytes


class Glances:
    """Middleware before the gate, which checks keys itself and lets pass what it does not answer.

    `endpoint` is the route whose answers these are, for those who count requests.
    """

    def __init__(self, app: ASGIApp, settings: Settings, endpoint: Callable[..., Any]) -> None:
        self.app, self._settings, self._endpoint = app, settings, endpoint
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._noted: dict[str, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and not scope["query_string"]:
            found = PATH.fullmatch(scope["path"])
            body = await self._answer(scope, found[1]) if found else None
            if body is not None:
                scope["endpoint"] = self._endpoint
                headers = [
                    (b"content-length", str(len(body)).encode()),
                    (b"content-type", b"application/json"),
                ]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, job_id: str) -> bytes | None:
        parts = _key(scope)
        if parts is None:
            return None
        state = scope["app"].state
        try:
            async with state.glancing.connection(patience(state.glancing)) as connection:
                cursor = await connection.execute(GLANCE, [parts[0], job_id])
                row = await cursor.fetchone()
                if row is None or not hmac.compare_digest(row[0], secret_sha256(parts[1])):
                    return None
                if row[4] and self._is_to_note(parts[0]):
                    return None
                standing: Standing = state.standing
                known, place = standing.recent(job_id) if row[1] == "queued" else (True, None)
                if not known:
                    return None
                kept = self._kept.get(job_id)
                if kept is None or (kept.row.xmin_, kept.row.ctid_) != (row[2], row[3]):
                    looked_at = await self._look(connection, job_id)
                    # It may have been queued, or claimed, between the two.
                    if looked_at is None or (looked_at.status == "queued") != (row[1] == "queued"):
                        return None
                    return self._keep(job_id, looked_at, place)
                # In a long queue all places change with each job that begins, and the rows do not.
                return kept.body if kept.place == place else self._keep(job_id, kept.row, place)
        except (psycopg.Error, PoolTimeout):
            return None

    def _is_to_note(self, key_id: str) -> bool:
        """Whether this request is the one that goes the usual way, to have it noted that its key is used."""
        at = time.monotonic()
        if at - self._noted.get(key_id, -NOTED) < NOTED:
            return False
        if len(self._noted) > KEPT:
            self._noted.clear()
        self._noted[key_id] = at
        return True

    async def _look(self, connection: Any, job_id: str) -> Any:
        cursor = connection.cursor(row_factory=namedtuple_row)
        return await (await cursor.execute(LOOK, [job_id])).fetchone()

    def _keep(self, job_id: str, row: Any, place: Place | None) -> bytes:
        body = pydantic_core.to_json(wire.job(row, self._settings.organization, place))
        self._kept[job_id] = Kept(row, place, body)
        self._kept.move_to_end(job_id)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return body


def _key(scope: Scope) -> tuple[str, str] | None:
    """Id and secret of the key, where exactly one is sent as it should be."""
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(sent) != 1 or not sent[0].startswith(b"Bearer "):
        return None
    return parse_key(sent[0][len(b"Bearer ") :].decode("latin-1"))


def patience(pool: AsyncConnectionPool[Any]) -> float:
    """Seconds to wait for a connection. Where there are some, each is back in milliseconds: whoever went the
    usual way instead, at ten times the cost, would make a full house fuller. Where there is none the
    database may be away, and the usual way says so."""
    return BUSY if pool.get_stats()["pool_size"] else AWAY


def glancing(settings: Settings) -> AsyncConnectionPool[Any]:
    """Connections of its own, past SQLAlchemy: its session costs more than all the rest of such an answer.
    For all other requests keys are recognised on them (app/auth.py). They are made when they are wanted, and
    made again when they are lost."""
    url = database_url(settings).set(drivername="postgresql").render_as_string(hide_password=False)
    return AsyncConnectionPool(
        url,
        min_size=0,
        max_size=CONNECTIONS,
        timeout=AWAY,
        # With the database away each poll tries anew, instead of waiting for an attempt that waits for longer
        # each time; the usual way says that it is away.
        reconnect_timeout=1,
        open=False,
        kwargs={"autocommit": True, **CONNECT_ARGUMENTS},
    )
