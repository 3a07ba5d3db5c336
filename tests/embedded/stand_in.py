"""`finetuned up` with stand-ins for its programs: real servers, real supervision, no API and no training.

python -m tests.embedded.stand_in HOME PORT [api|mute] [worker|stubborn]
"""

import sys
from pathlib import Path

import psycopg

from app.embedded.process import EmbeddedError
from app.embedded.programs import Program, environment
from app.embedded.up import up
from app.settings import Settings

PROGRAM = Path(__file__).with_name("stand_in_program.py")


def start(home: str, port: str, api: str = "api", worker: str = "worker") -> None:
    def choose(settings: Settings, listener: int, generator: bool) -> list[Program]:
        told = environment(settings)
        this = (sys.executable, str(PROGRAM))
        return [
            Program("api", (*this, api, str(listener)), 5, told, (listener,)),
            Program("worker", (*this, worker, str(settings.home)), 20, told),
        ]

    try:
        up(Settings(home=Path(home), port=int(port)), lambda line: print(line, flush=True), choose, prepare)
    except EmbeddedError as error:
        sys.exit(str(error))


def prepare(settings: Settings) -> None:
    """One row more at each start, and a key."""
    settings.key_file.write_text("ft-a-key\n")
    if settings.database_url is None:
        raise ValueError("no database")
    url = settings.database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS starts (at timestamptz DEFAULT now())")
        connection.execute("INSERT INTO starts DEFAULT VALUES")


if __name__ == "__main__":
    start(*sys.argv[1:])
