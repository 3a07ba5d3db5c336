"""Two workers in network namespaces of their own; one is cut off in the middle of a job.

Neither side is told: packets vanish, as where a switch dies. PostgreSQL and Valkey are reached by TCP over
the link, the former with a password (scram), as by workers on other machines.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import make_url

from app.embedded import postgres, valkey
from tests.chaos.world import World

NUMBER = os.getpid() % 250  # of the second byte of addresses, so that two runs do not meet
PORT = 20_000 + os.getpid() % 10_000


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@dataclass
class Place:
    """A namespace with a link to ours, and the worker in it."""

    letter: str
    number: int
    worker: subprocess.Popen[bytes] | None = None
    log: Path = field(default_factory=Path)

    @property
    def name(self) -> str:
        return f"ft{os.getpid()}{self.letter}"

    @property
    def address(self) -> str:
        """Ours on the link."""
        return f"10.{NUMBER}.{self.number}.1"

    def make(self) -> None:
        run("ip", "netns", "add", self.name)
        ours, theirs = f"{self.name}o", f"{self.name}t"
        run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", self.name)
        run("ip", "address", "add", f"{self.address}/24", "dev", ours)
        run("ip", "link", "set", ours, "up")
        inside = ("ip", "-n", self.name)
        run(*inside, "address", "add", f"10.{NUMBER}.{self.number}.2/24", "dev", theirs)
        run(*inside, "link", "set", theirs, "up")
        run(*inside, "link", "set", "lo", "up")

    def cut(self) -> None:
        run("ip", "link", "set", f"{self.name}o", "down")

    def mend(self) -> None:
        run("ip", "link", "set", f"{self.name}o", "up")

    def start(self, world: World, url: str, folder: Path) -> None:
        self.log = folder / f"worker-{self.letter}.log"
        there = make_url(url).set(host=self.address, port=PORT, query={})
        environment = {
            **world.environment,
            "DATABASE_URL": there.render_as_string(hide_password=False),
            "REDIS_URL": f"redis://:{urlsplit(world.broker).password}@{self.address}:{PORT + 1}",
            "FINETUNED_WORKER_LABELS": self.letter,
            "FINETUNED_LOG_LEVEL": "info",
        }
        celery = "worker -P threads -c 1 -Q gpu --loglevel warning --without-gossip --without-mingle"
        command = [sys.executable, "-m", "celery", "-A", "tests.chaos.worker", *celery.split()]
        with self.log.open("wb") as log:
            self.worker = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.name}", *command, "--without-heartbeat"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def trainers(self) -> list[int]:
        """Processes that the worker has started and that live."""
        assert self.worker is not None
        children = Path(f"/proc/{self.worker.pid}/task")
        found: list[int] = []
        for path in children.glob("*/children"):
            found += map(int, path.read_text().split())
        return [pid for pid in found if b"trainer" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def remove(self) -> None:
        if self.worker is not None:
            self.worker.send_signal(signal.SIGKILL)
            self.worker.wait()
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)


def refuse_without_namespaces() -> None:
    """Skips where the kernel lets nobody make them; in CI the programs for it must be there."""
    missing = [program for program in ("ip", "nsenter") if shutil.which(program) is None]
    assert not missing or os.environ.get("CI") != "true", f"not installed: {missing}"
    trial = f"ft{os.getpid()}x"
    add = ["ip", "netns", "add", trial]
    if missing or subprocess.run(add, check=False, capture_output=True).returncode != 0:
        pytest.skip("network namespaces need root, its rights over the network, and the program ip")
    subprocess.run(["ip", "netns", "delete", trial], check=True, capture_output=True)


@pytest.fixture
def places() -> Iterator[tuple[Place, Place]]:
    refuse_without_namespaces()
    made = Place("a", 1), Place("b", 2)
    try:
        for place in made:
            place.make()
        yield made
    finally:
        for place in made:
            place.remove()


@pytest.fixture
def world(
    places: tuple[Place, Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[World, str]]:
    """The service without workers, its servers on both links."""
    addresses = [place.address for place in places]
    monkeypatch.setitem(postgres.CONFIGURATION, "listen_addresses", ",".join(addresses))
    monkeypatch.setitem(postgres.CONFIGURATION, "port", str(PORT))
    monkeypatch.setitem(valkey.CONFIGURATION, "port", str(PORT + 1))
    monkeypatch.setitem(valkey.CONFIGURATION, "bind", " ".join(addresses))
    monkeypatch.setitem(valkey.CONFIGURATION, "protected-mode", "no")
    monkeypatch.setenv("PGPORT", str(PORT))
    # Of leases that a busy machine does not miss; the trainer that waits for its end is not silent too long.
    times = {"FINETUNED_LEASE": "6", "FINETUNED_STALL": "300"}
    world = World(tmp_path / "world", 1, 0, "tests.chaos.worker", **times)
    try:
        with (tmp_path / "world/postgres/cluster/pg_hba.conf").open("a") as rules:
            rules.writelines(f"host all all {address}/24 scram-sha-256\n" for address in addresses)
        superuser = world.postgres.url("postgres").replace("+psycopg", "")
        with psycopg.connect(superuser, autocommit=True) as connection:
            connection.execute("SELECT pg_reload_conf()")
        yield world, world.database
    finally:
        world.close()


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.05)


def test_the_other_finishes_the_job_and_the_one_that_was_cut_off_finds_itself_fenced(
    places: tuple[Place, Place], world: tuple[World, str], tmp_path: Path
) -> None:
    service, url = world
    first, second = places
    first.start(service, url, tmp_path)
    wait_for(lambda: service.rows("SELECT 1 AS x FROM workers"), "the first worker")
    waits = {"do": "silent", "at": 40, "below": 2}  # the first attempt, until it is ended
    job_id = service.create(service.upload(acts=[waits], steps=60, pause=0.02, save=20))
    wait_for(lambda: service.step(job_id) == 40, "its first steps")
    assert first.trainers()
    first.cut()
    second.start(service, url, tmp_path)
    wait_for(lambda: service.status(job_id) == "succeeded", "the end of the job on the other worker")
    assert abandoned(first) == [], "nobody has told it"
    before = service.rows("SELECT * FROM metrics WHERE job_id = %s ORDER BY step", job_id)
    first.mend()
    wait_for(lambda: abandoned(first) != [], "the fence")
    wait_for(lambda: job_trainers(first) == [], "the end of its trainer")
    assert abandoned(first) == ["ClaimLost"]
    attempts = service.rows(
        "SELECT epoch, worker, reason FROM attempts WHERE job_id = %s ORDER BY epoch", job_id
    )
    assert [attempt["reason"] for attempt in attempts] == ["worker_lost", "finished"]
    assert attempts[0]["worker"] != attempts[1]["worker"]
    after = service.rows("SELECT * FROM metrics WHERE job_id = %s ORDER BY step", job_id)
    assert after == before, "what it says now is not heard"
    assert [row["step"] for row in after] == list(range(1, 61))
    assert service.rows("SELECT count(*) AS n FROM models WHERE job_id = %s", job_id)[0]["n"] == 1
    # And it is a worker like any other again.
    again = service.create(service.upload(steps=2), requires={"labels": ["a"]})
    wait_for(lambda: service.status(again) == "succeeded", "a job of its own")


def abandoned(place: Place) -> list[str]:
    """Why the worker gave attempts up, as its log says."""
    lines = [line for line in place.log.read_text().splitlines() if '"attempt_abandoned"' in line]
    return [json.loads(line)["reason"] for line in lines]


def job_trainers(place: Place) -> list[int]:
    """Its trainers that have a job: all but the one that waits for the next."""
    return place.trainers()[1:]
