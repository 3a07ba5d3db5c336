"""The API on a socket that is already listening: `python -m app.embedded.api DESCRIPTOR`.

`finetuned up` holds the socket, so the port is known before the API runs and requests wait while it restarts.
"""

import socket
import sys

import uvicorn

STREAM_GRACE = 3  # seconds that open streams may take to end


def main(descriptor: int) -> None:
    """Serve until SIGTERM. uvicorn's own `--fd` takes the socket for a Unix one: no TCP_NODELAY."""
    config = uvicorn.Config(
        "app.main:create_app",
        factory=True,
        access_log=False,
        log_config=None,  # the application's own
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=STREAM_GRACE,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]))
