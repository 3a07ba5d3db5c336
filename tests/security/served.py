"""The API as a process of its own, whose logs can be read: what it says when nobody looks.

Under `-OO`, as somebody may run it: a check that is an `assert`, ours or a library's, would be gone.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from app.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serve(settings: Settings, log: Path) -> Iterator[str]:
    """Its address. Logs at the level `debug`, the most it can say."""
    assert settings.database_url is not None
    assert settings.redis_url is not None
    with socket.socket() as listener, log.open("wb") as out:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-OO", "-m", "app.embedded.api", str(listener.fileno())],
            cwd=ROOT,
            env={
                **os.environ,
                "FINETUNED_HOME": str(settings.home),
                "DATABASE_URL": settings.database_url.get_secret_value(),
                "REDIS_URL": settings.redis_url.get_secret_value(),
                "FINETUNED_LOG_LEVEL": "debug",
                "FINETUNED_MIN_FREE_BYTES": "0",
            },
            stdout=out,
            stderr=out,
            pass_fds=[listener.fileno()],
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            # The socket listens already: the request waits until somebody answers.
            httpx2.get(f"{url}/healthz", timeout=60).raise_for_status()
            yield url
        finally:
            process.terminate()
            process.wait(20)
