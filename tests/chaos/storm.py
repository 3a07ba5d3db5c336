"""Everything at once: jobs keep coming while, by a seeded choice, process after process is hurt."""

import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable

import httpx2
import psycopg

from tests.chaos.world import LEASE, World

FROZEN = 2.5 * LEASE
AWAY = 3 * LEASE


class Storm:
    """Hurts one world for a while. `faults` counts what was done, by kind."""

    def __init__(self, world: World, seed: int, kinds: tuple[str, ...] = ()) -> None:
        self.world, self.random = world, random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.accepted: set[str] = set()
        self._lock = threading.Lock()
        self._thaw: dict[str, float] = {}
        self._swallow_until = 0.0
        every: dict[str, Callable[[], None]] = {
            "kill -9 worker": self._kill_worker,
            "kill -9 trainer": self._kill_trainer,
            "freeze worker": self._freeze_worker,
            "drain worker": self._drain_worker,
            "kill -9 API": self._kill_api,
            "flush Redis": world.flush_redis,
            "kill -9 Redis": self._kill_redis,
            "swallow Redis": self._swallow,
            "garbage in Redis": lambda: world.push_garbage(
                self.random.choice([b"x", b"{}", b"[1", b"\x80\x02"])
            ),
            "stop Postgres": self._stop_postgres,
            "cancel": lambda: self._wish("cancel"),
            "pause": lambda: self._wish("pause"),
        }
        self.kinds = {kind: every[kind] for kind in kinds or every}

    def run(self, seconds: float, jobs: int, **script: float) -> None:
        submitter = threading.Thread(target=self._submit, args=(jobs, script))
        submitter.start()
        end = time.monotonic() + seconds
        deck: list[str] = []
        while time.monotonic() < end or submitter.is_alive():
            if time.monotonic() < end:
                deck = deck or self.random.sample(list(self.kinds), len(self.kinds))
                self._hurt(deck.pop())
            pause = time.monotonic() + self.random.uniform(0.3, 1.0)
            while time.monotonic() < pause:
                self._mend()
                time.sleep(0.05)
        submitter.join()
        self._swallow_until = 0.0
        self._thaw = dict.fromkeys(self._thaw, 0.0)
        self._mend()

    def settle(self, seconds: float) -> None:
        """Until every job has ended; what is paused is resumed."""
        world = self.world

        def ended() -> bool:
            for row in world.rows("SELECT id FROM jobs WHERE status = 'paused'"):
                world.ask("resume", row["id"])
            query = "SELECT id FROM jobs WHERE status NOT IN ('succeeded', 'failed', 'cancelled')"
            return not world.rows(query)

        with contextlib.suppress(TimeoutError):
            world.wait(ended, "the end of all jobs", seconds)

    def _submit(self, jobs: int, script: dict[str, float]) -> None:
        """Each request is repeated until it is answered with 200, as users do, under one key or the SDK's."""
        rng = random.Random(self.random.random())
        for number in range(jobs):
            steps, pause = rng.randint(10, 40), rng.uniform(0.01, 0.06)
            file_id = self._until_accepted(
                lambda chosen=(steps, pause, number): self.world.upload(  # type: ignore[misc]
                    **{"steps": chosen[0], "pause": chosen[1], "save": 4, "name": chosen[2], **script}
                )
            )
            job_id = self._until_accepted(lambda f=file_id, n=number: self.world.create(f, key=f"job-{n}"))  # type: ignore[misc]
            with self._lock:
                self.accepted.add(job_id)

    def _until_accepted(self, request: Callable[[], str]) -> str:
        while True:
            try:
                return request()
            except httpx2.HTTPStatusError as error:
                if error.response.status_code < 500:
                    raise
            except httpx2.HTTPError:
                pass
            time.sleep(0.2)

    def _hurt(self, kind: str) -> None:
        with contextlib.suppress(httpx2.HTTPError, psycopg.Error, OSError, IndexError, StopIteration):
            self.kinds[kind]()
            self.faults[kind] += 1

    def _mend(self) -> None:
        now = time.monotonic()
        for name in [name for name, at in self._thaw.items() if at < now]:
            del self._thaw[name]
            with contextlib.suppress(ProcessLookupError):
                self.world.kill(name, signal.SIGCONT)
        if self.world.proxy.swallow and now > self._swallow_until:
            self.world.proxy.swallow = False
        self.world.heal()

    def _worker(self) -> str:
        return self.random.choice([name for name in self.world.wanted if name.startswith("worker")])

    def _busy(self) -> str:
        """A worker with a job, where there is one."""
        rows = self.world.rows("SELECT id FROM jobs WHERE status = 'running' ORDER BY seq")
        if rows:
            return self.world.busy_worker(self.random.choice(rows)["id"]) or self._worker()
        return self._worker()

    def _kill_worker(self) -> None:
        self.world.kill(self._busy())

    def _kill_trainer(self) -> None:
        os.kill(self.random.choice(self.world.trainers(self._busy())), signal.SIGKILL)

    def _freeze_worker(self) -> None:
        name = self._busy()
        self.world.kill(name, signal.SIGSTOP)
        self._thaw[name] = time.monotonic() + FROZEN

    def _drain_worker(self) -> None:
        self.world.kill(self._busy(), signal.SIGTERM)

    def _kill_api(self) -> None:
        self.world.kill(self.random.choice([name for name in self.world.wanted if name.startswith("api")]))

    def _kill_redis(self) -> None:
        self.world.valkey.process.kill()
        time.sleep(0.5)

    def _swallow(self) -> None:
        self.world.proxy.swallow = True
        self._swallow_until = time.monotonic() + FROZEN

    def _stop_postgres(self) -> None:
        self.world.stop_postgres()
        time.sleep(AWAY)

    def _wish(self, verb: str) -> None:
        rows = self.world.rows("SELECT id FROM jobs WHERE status IN ('queued', 'running') ORDER BY seq")
        self.world.ask(verb, self.random.choice(rows)["id"])
