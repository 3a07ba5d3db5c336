"""One promise at a time: a fault, and what must follow, with its clock. Numbers are docs/reliability.md's."""

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from tests.chaos.world import GRACE, LEASE, REDISPATCH, SWEEP, World

# What a process of ours may take longer on two busy cores than on idle ones, in seconds.
SLACK = 6.0


class Faults:
    """How many were made, and what was found."""

    def __init__(self) -> None:
        self.count = 0
        self.found: list[str] = []

    def expect(self, condition: bool, complaint: str) -> None:
        if not condition:
            self.found.append(complaint)


def make(world: World, count: int, **script: object) -> list[str]:
    """Queued jobs; no two files are alike."""
    return [world.create(world.upload(**script, name=f"{n} {time.time()}")) for n in range(count)]


def start(world: World, count: int = 1) -> list[str]:
    """Long jobs that are training."""
    made = make(world, count, steps=4000, pause=0.02, save=20)
    for job_id in made:
        until(world, job_id, lambda job: job["step"] > 2, "its third step")
    return made


def until(world: World, job_id: str, condition: Callable[[dict[str, Any]], bool], what: str) -> float:
    """Seconds until a job's row is so."""
    return world.wait(lambda: condition(row(world, job_id)), f"{what} ({job_id})")


def row(world: World, job_id: str) -> dict[str, Any]:
    return world.rows("SELECT * FROM jobs WHERE id = %s", job_id)[0]


def end(world: World, *jobs: str) -> None:
    for job_id in jobs:
        world.ask("cancel", job_id)
    for job_id in jobs:
        until(world, job_id, lambda job: job["status"] == "cancelled", "its end")


def all_succeed(world: World, jobs: list[str], seconds: float) -> None:
    query = "SELECT 1 FROM jobs WHERE id = ANY(%s) AND status <> 'succeeded'"
    world.wait(lambda: not world.rows(query, jobs), "success of all jobs", seconds)


def next_claim(world: World, job_id: str, epoch: int, limit: float = 60.0) -> float:
    """Seconds until the job runs under a later epoch."""
    query = "SELECT 1 FROM jobs WHERE id = %s AND epoch > %s AND status = 'running'"
    return world.wait(lambda: world.rows(query, job_id, epoch), "the next claim", limit)


def around(world: World, job_id: str, epoch: int) -> tuple[int, int]:
    """The last step up to an epoch, and the first after it, once there is one."""
    later = "SELECT min(step) AS first FROM metrics WHERE job_id = %s AND epoch > %s"
    world.wait(lambda: world.rows(later, job_id, epoch)[0]["first"], "a step of the next attempt")
    former = "SELECT max(step) AS last FROM metrics WHERE job_id = %s AND epoch <= %s"
    return world.rows(former, job_id, epoch)[0]["last"], world.rows(later, job_id, epoch)[0]["first"]


def holder(world: World, job_id: str) -> str:
    """The program that trains a job, once it has a trainer."""
    world.wait(lambda: world.trainers(world.busy_worker(job_id) or "nobody"), "a trainer")
    return world.busy_worker(job_id) or holder(world, job_id)


def gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(lives(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def answering(world: World, faults: Faults, limit: float = 1.0) -> Iterator[None]:
    """The API answers within `limit` all the while, 95 times of 100."""
    took: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        with httpx2.Client(base_url=world.url, headers=world.client.headers, timeout=20) as client:
            while not stop.wait(0.1):
                began = time.monotonic()
                try:
                    client.get("/v1/fine_tuning/jobs?limit=1").raise_for_status()
                except httpx2.HTTPError as error:
                    faults.found.append(f"the API failed: {error!r}")
                took.append(time.monotonic() - began)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    worst = statistics.quantiles(took, n=20)[-1] if len(took) > 1 else 0
    faults.expect(worst < limit, f"the API took {worst:.1f} s")


def dead_workers(world: World, faults: Faults) -> None:
    """4, 14: a dead worker's job is claimed again in time, and its trainer is gone with it."""
    (job_id,) = start(world)
    limit = LEASE + GRACE + 2 * SWEEP + REDISPATCH + SLACK
    for _ in range(5):
        name = holder(world, job_id)
        trainers, epoch = world.trainers(name), world.epoch(job_id)
        world.kill(name)
        faults.count += 1
        faults.expect(gone(trainers, 2), f"{trainers} outlived their worker by 2 s")
        took = next_claim(world, job_id, epoch)
        faults.expect(took < limit, f"claimed again after {took:.1f} s, promised within {limit:.1f}")
    attempts = world.rows("SELECT 1 FROM attempts WHERE job_id = %s AND ended_at IS NULL", job_id)
    faults.expect(len(attempts) == 1, f"{len(attempts)} attempts are open")
    end(world, job_id)


def lost_broker(world: World, faults: Faults) -> None:
    """5, 7: the broker emptied, killed, filled with garbage, frozen: time is lost and nothing else."""
    jobs = make(world, 10, steps=4, pause=0)
    hurts: list[Callable[[], None]] = [
        world.flush_redis,
        world.valkey.process.kill,
        lambda: world.push_garbage(b"no json"),
        lambda: world.push_garbage(b'["no message"]'),
        world.valkey.process.kill,
        world.flush_redis,
    ]
    with answering(world, faults):
        for hurt in hurts:
            hurt()
            faults.count += 1
            time.sleep(0.5)
            world.heal()
        world.proxy.swallow = True
        faults.count += 1
        world.wait(lambda: "degraded" in world.get("/readyz").json(), "/readyz to say so", 10)
        jobs += make(world, 1, steps=4, pause=0)
        time.sleep(3)
        world.proxy.swallow = False
        # A worker gives up its own end of a dead connection after 21 s of silence.
        all_succeed(world, jobs, 90)
    world.wait(lambda: world.get("/readyz").json() == {"status": "ok"}, "/readyz", 10)


def absent_database(world: World, faults: Faults) -> None:
    """6, 7, 24: three leases without a database: the same trainers, the same epochs, no gap."""
    jobs = start(world, 2)
    trainers = [world.trainers(holder(world, job_id))[0] for job_id in jobs]
    epochs = [world.epoch(job_id) for job_id in jobs]
    for _ in range(2):
        world.stop_postgres()
        faults.count += 1
        began = time.monotonic()
        for path, wanted in (("/readyz", 503), ("/healthz", 200), ("/v1/fine_tuning/jobs", 503)):
            status = world.get(path).status_code
            faults.expect(status == wanted, f"{path} answers {status} without a database")
        time.sleep(max(0.0, 3 * LEASE - (time.monotonic() - began)))
        world.postgres.start()
        time.sleep(2 * LEASE)
        faults.expect(all(lives(pid) for pid in trainers), "a trainer was lost in the outage")
        now = [world.epoch(job_id) for job_id in jobs]
        faults.expect(now == epochs, f"epochs changed: {epochs} {now}")
    reaped = world.rows("SELECT 1 FROM history WHERE kind = 'reap' AND job = ANY(%s)", jobs)
    faults.expect(not reaped, f"{len(reaped)} healthy runs were reaped")
    end(world, *jobs)


def deaf_worker(world: World, faults: Faults) -> None:
    """7: a worker that no message reaches notices it, leaves with 70, and its successor works."""
    workers = [name for name in world.wanted if name.startswith("worker")]
    world.dismiss(*workers)
    hearing, world.entry = world.entry, "tests.chaos.deaf_worker"
    world.wanted.append("worker-deaf")
    world.heal()
    deaf = world.programs["worker-deaf"]
    world.wait(lambda: world.rows("SELECT 1 FROM workers WHERE seen_at > now() - interval '1 s'"), "its row")
    time.sleep(1)
    world.proxy.swallow = True
    faults.count += 1
    time.sleep(2)  # for every connection to have said something, and be dead
    world.proxy.swallow = False
    (job_id,) = make(world, 1, steps=4, pause=0)
    world.entry = hearing
    deadline = time.monotonic() + 60
    while deaf.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    faults.expect(deaf.poll() == 70, f"the deaf worker's exit code is {deaf.poll()}")
    if deaf.poll() is None:
        deaf.kill()
    all_succeed(world, [job_id], 60)
    world.dismiss("worker-deaf")
    world.wanted += workers
    world.heal()


def frozen_workers(world: World, faults: Faults) -> None:
    """3: a worker wakes up after its lease, its trainer further than its successor's, and wants to go on."""
    (job_id,) = start(world)
    for _ in range(5):
        name = holder(world, job_id)
        trainers, epoch = world.trainers(name), world.epoch(job_id)
        world.kill(name, signal.SIGSTOP)
        faults.count += 1
        next_claim(world, job_id, epoch, 15)
        world.kill(name, signal.SIGCONT)
        time.sleep(1)  # in which it tries
        lost = [pid for pid in trainers if lives(pid) and not gone([pid], 1)]
        # The next one, which it keeps warm, may live.
        faults.expect(len(lost) < len(trainers), f"{lost} train on, 2 s after their worker woke up")
    end(world, job_id)


def deploys(world: World, faults: Faults) -> None:
    """13: SIGTERM is a checkpoint, exit code 0, no attempt, and the job goes on elsewhere."""
    (job_id,) = start(world)
    for _ in range(4):
        name = holder(world, job_id)
        time.sleep(1)
        epoch = world.epoch(job_id)
        began = time.monotonic()
        world.kill(name, signal.SIGTERM)
        faults.count += 1
        code = world.programs[name].wait(20)
        took = time.monotonic() - began
        faults.expect(code == 0, f"exit code {code} on SIGTERM")
        faults.expect(took < 2 + SLACK, f"left after {took:.1f} s")
        world.heal()
        last, first = around(world, job_id, epoch)
        faults.expect(first == last + 1, f"went from step {last} to {first}")
    kinds = world.rows(
        "SELECT DISTINCT reason FROM attempts WHERE job_id = %s AND ended_at IS NOT NULL", job_id
    )
    faults.expect(kinds == [{"reason": "drained"}], f"attempts ended by {kinds}")
    faults.expect(row(world, job_id)["attempt"] == 1, "a deploy cost an attempt")
    end(world, job_id)


def cancels(world: World, faults: Faults) -> None:
    """10: cancel against finish, cancel of a frozen worker's job, cancel without a broker: one end each."""
    raced = make(world, 12, steps=6, pause=0.02)
    for number, job_id in enumerate(raced):
        time.sleep(0.05 * (number % 4))
        code = world.ask("cancel", job_id)
        faults.count += 1
        faults.expect(code in (200, 400), f"cancel answered {code}")
        faults.expect(world.ask("cancel", job_id) == 400, "a second cancel was not 400")
    (frozen,) = start(world)
    name = holder(world, frozen)
    world.kill(name, signal.SIGSTOP)
    faults.count += 1
    world.ask("cancel", frozen)
    took = until(world, frozen, lambda job: job["status"] == "cancelled", "the end of the frozen one")
    faults.expect(took < LEASE + GRACE + SLACK, f"cancelled after {took:.1f} s")
    world.kill(name, signal.SIGCONT)
    world.proxy.swallow = True
    faults.count += 1
    (unheard,) = make(world, 1, steps=400)
    faults.expect(world.ask("cancel", unheard) == 200, "no cancel without a broker")
    world.proxy.swallow = False
    until(world, unheard, lambda job: job["status"] == "cancelled", "its end")
    states = "SELECT 1 FROM jobs WHERE id = ANY(%s) AND status NOT IN ('cancelled', 'succeeded')"
    world.wait(lambda: not world.rows(states, raced), "the races' ends", 60)


def everything_dies(world: World, faults: Faults) -> None:
    """1, 26: `kill -9` of everything at once; started again, every promise stands."""
    jobs = make(world, 4, steps=30, pause=0.02)
    time.sleep(1)
    for process in (world.valkey.process, world.postgres.process):
        os.kill(process.pid or 0, signal.SIGKILL)
    for program in world.programs.values():
        program.kill()
    faults.count += len(world.programs) + 2
    for program in world.programs.values():
        program.wait()
    all_succeed(world, jobs, 90)


ALL: dict[str, Callable[[World, Faults], None]] = {
    "4, 14 dead workers": dead_workers,
    "5, 7 lost broker": lost_broker,
    "6, 7, 24 absent database": absent_database,
    "7 deaf worker": deaf_worker,
    "10 cancel": cancels,
    "13 deploys": deploys,
    "1, 26 all at once": everything_dies,
}
