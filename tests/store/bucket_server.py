"""An S3-compatible server in this process, which checks signatures, parts and ranges as the real ones do."""

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import uvicorn
from nanio.app import build_app
from nanio.auth.credentials import StaticCredentialResolver
from nanio.config import Settings as ServerSettings

KEY_ID, SECRET = "AKIATESTTESTTEST", "a-secret-of-the-tests-that-opens-nothing"
BUCKET = "models"


class BucketServer:
    """On a port that stays the same when it is stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / BUCKET).mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def objects(self) -> dict[str, bytes]:
        """What lies in the bucket, by key."""
        root = self.folder / BUCKET
        while True:
            with suppress(FileNotFoundError):  # the service removed something while we looked: look again
                return {
                    path.relative_to(root).as_posix(): path.read_bytes()
                    for path in root.rglob("*")
                    if path.is_file() and ".nanio-meta" not in path.parts
                }

    def start(self) -> None:
        app = build_app(
            ServerSettings(data_dir=self.folder, credentials=StaticCredentialResolver({KEY_ID: SECRET}))
        )
        config = uvicorn.Config(
            app, port=self.port, log_config=None, lifespan="off", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
