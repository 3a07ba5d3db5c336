"""What stands in for the API and the worker: `stand_in_program.py api|mute|worker|stubborn ARGUMENT`."""

import json
import os
import signal
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psycopg


class Api(BaseHTTPRequestHandler):
    """Answers how often `up` has been started, whatever is asked."""

    def do_GET(self) -> None:
        with psycopg.connect(os.environ["DATABASE_URL"].replace("+psycopg", "")) as connection:
            row = connection.execute("SELECT count(*) FROM starts").fetchone()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(row).encode())


def serve(descriptor: str) -> None:
    server = HTTPServer(("", 0), Api, bind_and_activate=False)
    server.socket = socket.socket(fileno=int(descriptor))
    server.serve_forever()


def mute(_: str) -> None:
    sys.exit("the api has nothing to say")


def work(home: str) -> None:
    """Says that it runs, and on SIGTERM takes half a second to save; Ctrl-C is not meant for it."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(1))
    signal.signal(signal.SIGTERM, lambda *_: save(home))
    Path(home, "worker.pid").write_text(str(os.getpid()))
    time.sleep(600)


def save(home: str) -> None:
    time.sleep(0.5)
    Path(home, "saved").touch()
    sys.exit(0)


def resist(home: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(home, "worker.pid").write_text(str(os.getpid()))
    time.sleep(600)


if __name__ == "__main__":
    verbs = {"api": serve, "mute": mute, "worker": work, "stubborn": resist}
    verbs[sys.argv[1]](sys.argv[2])
