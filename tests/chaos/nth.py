"""Each operation in turn fails: the n-th statement, commit, fsync, rename or start of a process, for every n.

A random killer misses windows of microseconds; this does not. Each case is a forked process with one fault in
it, then one without any that recovers as the service would (another message, a sweep once the lease is over).

    error   the operation raises what a broken connection or disk raises
    lost    the commit is made and its answer never comes
    crash   the process ends there, as by kill -9
"""

import asyncio
import os
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from sqlalchemy import event, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app import purge
from app.database import Database, WorkerDatabase
from app.folder import Folder
from app.lifecycle import claims, wishes
from app.recipe import Recipe
from app.settings import Settings
from app.tables import File, Job, now
from tests.chaos import history
from tests.chaos.worker_command import STAND_IN
from worker import tasks
from worker.launch import Trainer, WarmTrainers
from worker.record import ClaimLost, Offline
from worker.runtime import Runtime

OWNER = "finetuned"
CRASHED = 99


class Fault:
    """Happens at the n-th point that is passed."""

    def __init__(self, mode: str, at: int) -> None:
        self.mode, self.at, self.passed = mode, at, 0

    def install(self) -> None:
        for owner, name in ((os, "fsync"), (Path, "rename"), (subprocess, "Popen")):
            self._wrap(owner, name)
        if self.mode != "lost":
            event.listen(Engine, "before_cursor_execute", lambda *_: self.hit(self._outage))
        real = Session.commit

        def commit(session: Session) -> None:
            if self.mode != "lost":
                self.hit(self._outage)
            real(session)
            if self.mode == "lost":
                self.hit(self._outage)

        Session.commit = commit  # type: ignore[method-assign,assignment]

    def _wrap(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def wrapped(*given: Any, **named: Any) -> Any:
            self.hit(lambda: OSError(5, f"{name} failed"))
            return real(*given, **named)

        setattr(owner, name, wrapped)

    @staticmethod
    def _outage() -> Exception:
        return OperationalError("a statement", {}, Exception("server closed the connection unexpectedly"))

    def hit(self, error: Callable[[], Exception]) -> None:
        if self.mode == "lost" and not isinstance(error(), OperationalError):
            return
        self.passed += 1
        if self.passed == self.at:
            if self.mode == "crash":
                os._exit(CRASHED)
            raise error()


class Sweep:
    """Runs scenarios on one database. `faults` counts the cases, `found` what was wrong after them."""

    def __init__(self, settings: Settings, database: str, seed: int) -> None:
        self.settings = settings.model_copy(
            update={
                "lease": timedelta(seconds=0.5),
                "heartbeat": timedelta(seconds=0.1),
                "stop_grace": timedelta(seconds=1),
                "retry_delay": timedelta(0),
                "max_offline": timedelta(seconds=5),
                "max_attempts": 5,
            }
        )
        self.database, self.random = database, random.Random(seed)
        self.store = Folder(settings.storage_folder)
        self.faults: Counter[str] = Counter()
        self.found: list[str] = []

    def run(self, stride: int) -> None:
        """Every `stride`-th operation fails, from a random one on; every commit's answer is lost."""
        for name, scenario in SCENARIOS.items():
            for mode, step in (("error", stride), ("crash", stride), ("lost", 1)):
                at, reached = self.random.randint(1, step), True
                while reached:
                    reached = self._case(name, scenario, mode, at)
                    self.faults[f"n-th {mode}"] += reached
                    at += step
        self.found += history.violations(history.read(self.database))

    def _case(self, name: str, scenario: "Scenario", mode: str, at: int) -> bool:
        """Whether there was an n-th operation to fail."""
        mark = secrets.token_hex(12)
        self._fork(lambda: self._prepare(mark))
        reached = self._fork(lambda: self._faulty(scenario, mark, mode, at)) != 0
        code = self._fork(lambda: self._recover(scenario, mark))
        if code != 0:
            self.found.append(f"{name}: {mode} at operation {at}: {CODES.get(code, code)}")
        return reached

    def _fork(self, work: Callable[[], int]) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._child(work)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _child(self, work: Callable[[], int]) -> NoReturn:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        random.uniform = lambda *_: 0.02  # between two tries
        try:
            status = work()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            status = 9
        os._exit(status)

    def runtime(self) -> Runtime:
        trainers = WarmTrainers(lambda: Trainer(STAND_IN))
        return Runtime(self.settings, WorkerDatabase(self.settings), self.store, trainers, "worker")

    def _prepare(self, mark: str) -> int:
        with self.store.upload(f"files/file-{mark}") as upload:
            upload.write(b'{"text": "{\\"steps\\": 4, \\"save\\": 2, \\"pause\\": 0}"}\n')
            upload.commit()
        with WorkerDatabase(self.settings).transaction() as session:
            session.add(
                File(
                    id=f"file-{mark}", owner=OWNER, key=f"files/file-{mark}", bytes=1, sha256="",
                    filename="f", purpose="fine-tune", format="jsonl", status="processed", rows=1,
                )
            )  # fmt: skip
        return 0

    def _faulty(self, scenario: "Scenario", mark: str, mode: str, at: int) -> int:
        """0 where the operation was never reached."""
        scenario.before(self, mark)
        fault = Fault(mode, at)
        fault.install()
        try:
            scenario.work(self, mark)
        except (OperationalError, OSError, ClaimLost, Offline):
            return 1
        return 1 if fault.passed >= at else 0

    def _recover(self, scenario: "Scenario", mark: str) -> int:
        scenario.again(self, mark)
        code: int = scenario.check(self, mark)
        return code


def create(sweep: Sweep, mark: str) -> None:
    values = {
        "id": f"ftjob-{secrets.token_hex(12)}",
        "owner": OWNER,
        "idempotency_key": mark,
        "request_sha256": mark,
        "model": "tiny-gpt2",
        "source": "builtin:tiny-gpt2",
        "training_file": f"file-{mark}",
        "seed": 42,
        "method": {},
        "hyperparameters": {},
        "recipe": Recipe.from_request({}, "supervised").model_dump(mode="json"),
        "max_attempts": sweep.settings.max_attempts,
    }
    with WorkerDatabase(sweep.settings).transaction() as session:
        before = wishes.created_before(session, OWNER, mark, mark, repeated=True)
        if before is None:
            wishes.create(session, values)


def job(sweep: Sweep, mark: str) -> Job:
    with WorkerDatabase(sweep.settings).transaction() as session:
        return session.scalars(select(Job).where(Job.idempotency_key == mark)).one()


def train(sweep: Sweep, mark: str) -> None:
    tasks.train(sweep.runtime(), job(sweep, mark).id)


def until_ended(sweep: Sweep, mark: str) -> None:
    """What dispatcher and sweep do."""
    deadline = time.monotonic() + 20
    runtime = sweep.runtime()
    while (found := job(sweep, mark)).status not in history.ENDED and time.monotonic() < deadline:
        with runtime.database.transaction() as session:
            claims.reap(session, timedelta(0))
        if found.status == "queued":
            tasks.train(runtime, found.id)
        else:
            time.sleep(0.05)


def train_while_cancelled(sweep: Sweep, mark: str) -> None:
    """The wish is there before the work: it is read with the first heartbeat."""
    found = job(sweep, mark)
    runtime = sweep.runtime()
    database = runtime.database
    with database.transaction() as session:
        held = claims.claim(session, found.id, "worker", sweep.settings.lease)
    wishes_now = WorkerDatabase(sweep.settings)
    with wishes_now.transaction() as session:
        wishes.cancel(session, found.id, OWNER)
    if held is not None:
        tasks._Attempt(runtime, held).run()


def delete(sweep: Sweep, mark: str) -> None:
    async def work() -> None:
        database = Database(sweep.settings)
        async with database.transaction() as session:
            row = await session.get_one(File, f"file-{mark}")
            row.deleted_at = row.deleted_at or now
        async with database.transaction() as session:
            found = await purge.doomed(session)
        for doomed in found:
            purge.remove(sweep.store, doomed)
            async with database.transaction() as session:
                await purge.forget(session, doomed)
        await database.close()

    asyncio.run(work())


CODES = {
    2: "not one job",
    3: "not ended rightly",
    4: "its bytes are still there",
    5: "its model is not whole",
}


def one_job(sweep: Sweep, mark: str) -> int:
    with WorkerDatabase(sweep.settings).transaction() as session:
        return 0 if len(session.scalars(select(Job).where(Job.idempotency_key == mark)).all()) == 1 else 2


def succeeded(sweep: Sweep, mark: str) -> int:
    found = job(sweep, mark)
    if found.status != "succeeded":
        return 3
    models = list((sweep.store.root / "models").glob(f"{found.id}-e*/model.safetensors"))
    return 0 if models else 5


def cancelled(sweep: Sweep, mark: str) -> int:
    # A wish that was lost with its process was never answered, and the job goes on.
    return 0 if job(sweep, mark).status in ("cancelled", "succeeded") else 3


def deleted(sweep: Sweep, mark: str) -> int:
    left = list((sweep.store.root / "files").glob(f"*{mark}*"))
    with WorkerDatabase(sweep.settings).transaction() as session:
        return 4 if left or session.get_one(File, f"file-{mark}").key is not None else 0


def nothing(sweep: Sweep, mark: str) -> None:
    pass


class Scenario:
    """`before` is not hurt, `work` is, `again` recovers, `check` gives a code of CODES or 0."""

    def __init__(self, *parts: Callable[[Sweep, str], Any]) -> None:
        self.before, self.work, self.again, self.check = parts


SCENARIOS = {
    "create": Scenario(nothing, create, create, one_job),
    "claim to finish": Scenario(create, train, until_ended, succeeded),
    "cancel": Scenario(create, train_while_cancelled, until_ended, cancelled),
    "delete": Scenario(nothing, delete, delete, deleted),
}
