"""The programs of `finetuned up` besides its two servers, as data: what is run, and what it is told."""

import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from app.embedded.process import Process
from app.settings import Settings

# A working folder holding these packages, so that `-m` never picks up an `app` where the user happens to be.
ROOT = Path(__file__).resolve().parents[2]
API_GRACE = 5.0  # seconds, of which open streams get three
GENERATOR_GRACE = 5.0
WORKER_SENDING = 300.0  # seconds more to bring the last checkpoint into a bucket
WORKER_MARGIN = 15.0  # seconds beyond the trainer's own grace, for the last rows and Celery's warm shutdown


@dataclass(frozen=True)
class Program:
    """`grace` is how many seconds it may take to end after SIGTERM; `descriptors` are left open for it.

    In `environment` None takes a variable away. Secrets travel there: an argument list is for all to see.
    """

    name: str
    command: tuple[str, ...]
    grace: float
    environment: Mapping[str, str | None] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()
    inherits: tuple[str, ...] | None = None  # prefixes of variables, beside those that hold no secret

    def process(self, logs: Path) -> Process:
        return Process(
            self.name,
            self.command,
            log=logs / f"{self.name}.log",
            environment=self.environment,
            folder=ROOT,
            descriptors=self.descriptors,
            inherits=self.inherits,
        )


class Running:
    """A program as the supervisor keeps it."""

    def __init__(self, program: Program, logs: Path) -> None:
        self.process = program.process(logs)
        self._grace = program.grace
        self._asked = False

    def start(self) -> None:
        self._asked = False
        self.process.start()

    def ask(self) -> None:
        """SIGTERM, once: a second one means haste to some programs."""
        if not self._asked:
            self._asked = True
            self.process.send(signal.SIGTERM)

    def stop(self) -> None:
        self.ask()
        self.process.end(self._grace)


def programs(settings: Settings, listener: int, embedded_generator: bool) -> list[Program]:
    """What to run, the API first. `listener` is the descriptor of the API's listening socket."""
    api = Program(
        "api",
        (sys.executable, "-m", "app.embedded.api", str(listener)),
        API_GRACE,
        environment(settings),
        (listener,),
    )
    worker = Program("worker", celery(settings), _worker_grace(settings), environment(settings))
    generator = Program(
        "generator",
        (sys.executable, "-m", "worker.generation"),
        GENERATOR_GRACE,
        # It runs models that others made: it gets no key to the database, the queue or another server.
        {
            **environment(settings),
            **_both("DATABASE_URL", None),
            **_both("REDIS_URL", None),
            "FINETUNED_UPSTREAMS": None,
            "FINETUNED_API_KEY": None,
        },
        # Where models lie in a bucket it reads them there.
        inherits=("FINETUNED_",) if settings.store is None else ("FINETUNED_", "AWS_"),
    )
    return [api, *([generator] if embedded_generator else []), worker]


def celery(settings: Settings) -> tuple[str, ...]:
    options = f"-P threads -c {settings.worker_slots} -Q gpu --loglevel {settings.log_level}"
    quiet = "--without-gossip --without-mingle --without-heartbeat"
    command = f"-m celery -A worker.main worker {options} {quiet}"
    return (sys.executable, *command.split())


def environment(settings: Settings) -> dict[str, str | None]:
    """Every setting that `up` decides on, as the programs' Settings will read it."""
    return {
        "PYTHONUNBUFFERED": "1",
        "FINETUNED_HOME": str(settings.home),
        "FINETUNED_HOST": settings.host,
        "FINETUNED_PORT": str(settings.port),
        **_both("DATABASE_URL", _secret(settings.database_url)),
        **_both("REDIS_URL", _secret(settings.redis_url)),
        **_both("GENERATOR_URL", settings.generator_url),
        "FINETUNED_API_KEY": None,  # what a person's commands use is no program's business
    }


def _both(name: str, value: str | None) -> dict[str, str | None]:
    """Under both of its names, so that whichever the user had set says the same."""
    return {name: value, f"FINETUNED_{name}": value}


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value else None


def _worker_grace(settings: Settings) -> float:
    sending = WORKER_SENDING if settings.store is not None else 0.0
    return settings.stop_grace.total_seconds() + WORKER_MARGIN + sending
