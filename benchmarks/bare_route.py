"""What the polling of a job is measured against: FastAPI and psycopg, and nothing else.

One route that reads the job's row by one SELECT on a pooled connection and sends the same JSON. It asks for
no key, knows no owner and no queue, and writes no log.
"""

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pydantic_core
import uvicorn
from fastapi import FastAPI, Response
from psycopg.rows import namedtuple_row
from psycopg_pool import AsyncConnectionPool

from app import wire
from app.settings import Settings

POOL = 10  # as the service's own


def create_app() -> FastAPI:
    settings = Settings()
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        url.replace("+psycopg", ""),
        min_size=POOL,
        max_size=POOL,
        open=False,
        kwargs={"autocommit": True, "row_factory": namedtuple_row},
    )

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with pool:
            yield

    app = FastAPI(lifespan=running, openapi_url=None)

    @app.get("/v1/fine_tuning/jobs/{job_id}")
    async def retrieve_job(job_id: str) -> Response:
        async with pool.connection() as connection:
            query = "SELECT *, metadata AS job_metadata FROM jobs WHERE id = %s"
            row = await (await connection.execute(query, [job_id])).fetchone()
        if row is None:
            return Response(status_code=404)
        body = pydantic_core.to_json(wire.job(row, settings.organization))
        return Response(body, media_type="application/json")

    return app


def main(descriptor: int) -> None:
    config = uvicorn.Config(
        "benchmarks.bare_route:create_app",
        factory=True,
        access_log=False,
        log_config=None,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]))
