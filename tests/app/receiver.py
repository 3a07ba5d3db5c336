"""Somebody else's server: a real one on loopback that keeps what it is sent and answers as it is told."""

import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Received:
    """A request, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """`answers[path]` holds what is to come: a status, a redirect's (status, location), or an event that is
    waited for before a 200. An empty one answers 200."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.received: list[Received] = []
        self.answers: defaultdict[str, deque[int | tuple[int, str] | threading.Event]] = defaultdict(deque)
        self._arrived = threading.Condition()

    def keep(self, received: Received) -> None:
        with self._arrived:
            self.received.append(received)
            self._arrived.notify_all()

    def of(self, path: str) -> list[Received]:
        return [each for each in self.received if each.path == path]

    def wait(self, path: str, count: int) -> list[Received]:
        """What came to a path, once it is `count`."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.of(path)) >= count, 60), self.received
            return self.of(path)


@contextmanager
def receiving() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.keep(Received(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            coming = receiver.answers[self.path]
            answer = coming.popleft() if coming else 200
            if isinstance(answer, threading.Event):
                answer.wait(60)
                answer = 200
            status, location = answer if isinstance(answer, tuple) else (answer, None)
            self.send_response(status)
            if location is not None:
                self.send_header("location", location)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST  # noqa: N815  # the names http.server calls

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            """A sender that is killed hangs up; nobody need read about it."""

    server = Server(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
