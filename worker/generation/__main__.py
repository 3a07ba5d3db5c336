"""`python -m worker.generation`: the generator, on the address of GENERATOR_URL, until it is told to stop."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from app import model_folder
from app.catalogue import locate
from app.errors import InvalidRequest
from app.journal import configure_logs
from app.link import LONGEST
from app.settings import Settings
from app.storage import Store
from worker.generation import confinement
from worker.start import usable_store

# How often a waiting thread of torch looks again before it sleeps, a quarter of a millisecond: for prompts,
# and for large models, whose layers run on several threads. Who never sleeps takes the API's processor.
SPINS = "5000"


class PatientServer(uvicorn.Server):
    """uvicorn closes WebSockets the moment it is told to stop: what is nearly answered would be lost."""

    PATIENCE = 3.0  # seconds

    def __init__(self, config: uvicorn.Config, finish: Callable[[float], Awaitable[None]]) -> None:
        super().__init__(config)
        self._finish = finish

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._finish(self.PATIENCE)
        await super().shutdown(sockets)


def listen(url: str) -> socket.socket:
    """A listening socket for `http://host:port` or `unix:/path`; the latter for this user alone (0600).

    Raises ValueError for another form of address, OSError where it is taken.
    """
    if url.startswith("unix:"):
        path = Path(url.removeprefix("unix:"))
        path.unlink(missing_ok=True)  # left by a generator that was killed
        server = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o177)
        try:
            server.bind(str(path))
        finally:
            os.umask(mask)
        return server
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.port is None:
        raise ValueError(f"GENERATOR_URL is neither http://host:port nor unix:/path: {url}")
    family = socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET
    return socket.create_server((parts.hostname, parts.port), family=family)


def locate_checked(source: str, settings: Settings, store: Store) -> Path:
    """The source's folder. Raises FileNotFoundError, InvalidRequest for one that is no model we run."""
    folder = locate(source, settings, store)
    try:
        model_folder.check(folder)
    except model_folder.UnusableModel as error:
        raise InvalidRequest(
            f"This model cannot be run: {error}", param="model", code="model_not_supported"
        ) from error
    return folder


def main() -> None:
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    settings = Settings()
    configure_logs(settings.log_level)
    if settings.generator_url is None:
        sys.exit("GENERATOR_URL is not set: it says where to listen, http://host:port or unix:/path")
    if "," in settings.generator_url:
        sys.exit("GENERATOR_URL names several generators here: tell each of them its own address alone")
    try:
        server = listen(settings.generator_url)
    except (OSError, ValueError) as error:
        sys.exit(f"cannot listen on {settings.generator_url}: {error}")
    confinement.enter(settings)
    os.environ["HF_HUB_OFFLINE"] = "1"
    # GOMP_SPINCOUNT is read when torch is loaded, and threads start then: so it is loaded only now.
    from transformers.utils import logging as transformers_logging

    from worker.generation.server import create_app

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    store = usable_store(settings, write=False)
    app = create_app(
        partial(locate_checked, settings=settings, store=store),
        settings.generator_memory_bytes,
        settings.generator_queue,
        precision=settings.generator_precision,
    )
    config = uvicorn.Config(
        app,
        # Never `debug`: every frame of the line would be written down, with what people ask and are answered.
        log_level=max(logging.INFO, logging.getLevelNamesMapping()[settings.log_level.upper()]),
        log_config=None,  # the form of all our programs
        access_log=False,
        timeout_graceful_shutdown=3,
        ws_max_size=LONGEST + 1024,  # with its number
    )
    # uvicorn stops on SIGTERM, then raises it again for the handler it found here: this one exits with 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    PatientServer(config, app.state.finish).run(sockets=[server])


if __name__ == "__main__":
    main()
