"""`python -m worker.health`: whether this machine's worker has told the database that it lives.

A worker has no port to ask. Its row, written at every heartbeat, shows more: that it can reach the database.
"""

import socket
import sys

from sqlalchemy import select

from app.database import WorkerDatabase
from app.settings import Settings
from app.tables import Worker, now

MISSED = 3  # heartbeats; one alone may be late


def is_alive(settings: Settings, host: str) -> bool:
    database = WorkerDatabase(settings)
    since = now - MISSED * settings.heartbeat
    try:
        with database.transaction() as session:
            seen = session.scalar(
                select(Worker.id).where(Worker.host == host, Worker.seen_at > since).limit(1)
            )
    finally:
        database.close()
    return seen is not None


def main() -> None:
    host = socket.gethostname()
    if not is_alive(Settings(), host):
        sys.exit(f"no worker on {host} has been heard of lately")


if __name__ == "__main__":
    main()
