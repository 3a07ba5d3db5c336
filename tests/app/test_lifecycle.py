"""Every order of operations on a job, against real PostgreSQL and a model of thirty lines.

The walk tries every operation in every state that sequences of a length leave in the database; the state
machine wanders at random for longer. After each operation the row must be where the model says, and what the
model forbids must have changed nothing; and every end, whoever made it, must be told to the webhooks once.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.errors import InvalidRequest
from app.lifecycle import claims, wishes, yielding
from app.lifecycle.claims import Claim, JobError
from app.tables import File
from app.webhooks import event
from app.webhooks.rows import WebhookEndpoint

OWNER = "me"
MAX_ATTEMPTS = 2
ENDED = ("succeeded", "failed", "cancelled")
CRASH = JobError("worker_crashed", "It crashed.")
LEASE = timedelta(seconds=60)
NOW = timedelta(0)
DEPTH = int(os.environ.get("FINETUNED_WALK_DEPTH", "6"))


@dataclass(frozen=True)
class Model:
    """What a job's row should say."""

    status: str = "queued"
    attempt: int = 0
    epoch: int = 0
    cancel: bool = False
    pause: bool = False
    give_way: bool = False

    def left(self, refund: int, used_up: bool) -> "Model":
        """After a worker let go of the job."""
        status = "queued"
        if self.pause:
            status = "paused"
        if used_up:
            status = "failed"
        if self.cancel:
            status = "cancelled"
        return replace(
            self,
            status=status,
            attempt=self.attempt - refund,
            pause=False,
            cancel=status == "cancelled",
            give_way=False,
        )

    def step(self, operation: str, current: bool) -> "Model | None":
        """The next state; None where the operation must be refused. `current`: by the holder of the claim."""
        running = self.status == "running"
        resting = self.status in ("queued", "paused")
        match operation:
            case "claim" if self.status == "queued":
                return replace(self, status="running", attempt=self.attempt + 1, epoch=self.epoch + 1)
            case "beat" if running and current:
                return self
            case "succeed" if running and current:
                return replace(self, status="succeeded", pause=False, give_way=False)
            case "fail" if running and current:
                return self.left(0, used_up=True)
            case "release" if running and current:
                return self.left(1, used_up=self.attempt - 1 >= MAX_ATTEMPTS)
            case "retry" if running and current:
                return self.left(0, used_up=self.attempt >= MAX_ATTEMPTS)
            case "reap" if running:
                after = self.left(0, used_up=self.attempt >= MAX_ATTEMPTS)
                return replace(after, epoch=self.epoch + 1)
            case "cancel" if resting:
                return replace(self, status="cancelled")
            case "cancel" if running and not self.cancel:
                return replace(self, cancel=True)
            case "pause" if self.status == "queued":
                return replace(self, status="paused")
            case "pause" if running and not self.cancel and not self.pause:
                return replace(self, pause=True)
            case "preempt" if running and not (self.cancel or self.pause or self.give_way):
                return replace(self, give_way=True)
            case "resume" if self.status == "paused":
                return replace(self, status="queued")
            case _:
                return None


EXPIRE = text(
    "UPDATE jobs SET lease_expires_at = now() - interval '1 hour' WHERE id = :id AND status = 'running'"
)
# All that an operation reads; of times whether they are set, for `reap` alone looks when, and is told here.
ROW = "jsonb_object_agg(key, CASE WHEN key ~ '_at$|_before$' AND value <> 'null' THEN 'true' ELSE value END)"
STATE = text(
    f"SELECT (SELECT {ROW}::text FROM jobs j, jsonb_each(to_jsonb(j)) WHERE id = :id),"  # noqa: S608
    f" ARRAY(SELECT {ROW}::text FROM attempts a, jsonb_each(to_jsonb(a)) WHERE job_id = :id"
    " GROUP BY epoch ORDER BY epoch),"
    " ARRAY(SELECT event_type FROM webhook_deliveries WHERE body LIKE :body)"
)
BESIDE = text(
    "SELECT (SELECT count(*) FROM attempts WHERE job_id = :id AND ended_at IS NULL) AS open_attempts,"
    " ARRAY(SELECT event_type FROM webhook_deliveries WHERE body LIKE :body) AS told"
)
OPERATIONS = (
    "claim", "beat", "succeed", "fail", "release", "retry", "reap", "cancel", "pause", "resume", "preempt",
)  # fmt: skip
WORKERS = ("beat", "succeed", "fail", "release", "retry")  # also tried by the worker that lost its claim


MOVES = [(operation, False) for operation in OPERATIONS] + [(operation, True) for operation in WORKERS]


class World:
    """One job in the database beside its model."""

    def __init__(self, session: Session, job_id: str) -> None:
        self.session, self.job_id, self.model = session, job_id, Model()
        self.held: Claim | None = None
        self.stale: Claim | None = None
        wishes.create(session, values(job_id))

    def do(self, operation: str, *, stale: bool = False) -> None:
        held = self.stale if stale else self.held
        if operation in WORKERS and held is None:
            return
        current = held is not None and held.epoch == self.model.epoch and self.model.status == "running"
        expected = self.model.step(operation, current)
        accepted = self._perform(operation, held)
        assert accepted == (expected is not None), f"{operation}: {self.model} gave {accepted}"
        self.model = expected or self.model
        self.check()

    def _perform(self, operation: str, held: Claim | None) -> bool:
        session, job_id = self.session, self.job_id
        if operation == "claim":
            claim = claims.claim(session, job_id, "worker", LEASE)
            if claim is not None:
                self.stale, self.held = self.held, claim
            return claim is not None
        if operation == "reap":
            session.execute(EXPIRE, {"id": job_id})
            return job_id in claims.reap(session, NOW)
        if operation == "preempt":
            return yielding.ask(session, job_id, "another", 1)
        if operation in ("cancel", "pause", "resume"):
            try:
                getattr(wishes, operation)(session, job_id, OWNER)
            except InvalidRequest:
                return False
            return True
        assert held is not None
        verbs: dict[str, Callable[[], Any]] = {
            "beat": lambda: self._beat(held),
            "succeed": lambda: claims.succeed(session, held, f"ft:{job_id}", 1),
            "fail": lambda: claims.fail(session, held, CRASH),
            "release": lambda: claims.release(session, held, "drained") is not None,
            "retry": lambda: claims.retry(session, held, CRASH, NOW) is not None,
        }
        return bool(verbs[operation]())

    def _beat(self, held: Claim) -> bool:
        heard = claims.beat(self.session, held, LEASE, {"step": 1})
        if heard is not None:
            model = self.model
            assert (heard.cancel, heard.pause, heard.give_way) == (model.cancel, model.pause, model.give_way)
        return heard is not None

    def check(self) -> None:
        row = self.session.execute(
            text(
                "SELECT status, attempt, epoch, cancel_requested_at IS NOT NULL AS cancel,"
                " pause_requested_at IS NOT NULL AS pause, yield_to IS NOT NULL AS give_way"
                " FROM jobs WHERE id = :id"
            ),
            {"id": self.job_id},
        ).one()
        found = Model(row.status, row.attempt, row.epoch, row.cancel, row.pause, row.give_way)
        if found.status in ENDED:
            # Whether the wish is still noted on an ended job is history, not state.
            found, wanted = replace(found, cancel=False), replace(self.model, cancel=False)
        else:
            wanted = self.model
        assert found == wanted
        beside = self.session.execute(BESIDE, {"id": self.job_id, "body": f'%"{self.job_id}"%'}).one()
        assert beside.open_attempts == (1 if found.status == "running" else 0)
        assert beside.told == ([f"fine_tuning.job.{found.status}"] if found.status in ENDED else [])

    def state(self) -> str:
        """Two worlds of the same state have the same future."""
        row = self.session.execute(STATE, {"id": self.job_id, "body": f'%"{self.job_id}"%'}).one()
        return repr((tuple(row), self.model, self.held, self.stale))


def values(job_id: str) -> dict[str, Any]:
    return {
        "id": job_id,
        "owner": OWNER,
        "idempotency_key": None,
        "request_sha256": "",
        "model": "tiny-gpt2",
        "source": "builtin:tiny-gpt2",
        "training_file": "file-1",
        "seed": 42,
        "method": {"type": "supervised"},
        "hyperparameters": {},
        "recipe": {},
        "max_attempts": MAX_ATTEMPTS,
    }


@pytest.fixture(scope="module")
def engine(module_database_url: str) -> Iterator[Engine]:
    engine = create_engine(module_database_url)
    with Session(engine) as session:
        session.add(
            File(
                id="file-1",
                owner=OWNER,
                key="files/file-1",
                bytes=1,
                sha256="",
                filename="f",
                purpose="fine-tune",
                format="jsonl",
                status="processed",
                rows=1,
            )
        )
        session.add(
            WebhookEndpoint(
                id="we_1",
                owner=OWNER,
                name="all",
                url="https://example.com",
                event_types=list(event.TYPES),
                secret_salt="",
                secret_hint="",
            )
        )
        session.commit()
    yield engine
    engine.dispose()


def walk(world: World, depth: int, been: dict[str, int]) -> int:
    """Try every operation here and, after each that was accepted, every one from there; how many were tried.

    What was refused changed nothing (`do` checks it), so nothing new can follow from it; nor from a state in
    which the walk has been with as many operations left.
    """
    here = world.state()
    if been.get(here, 0) >= depth:
        return 0
    been[here] = depth
    tried = 0
    before = (world.model, world.held, world.stale)
    for operation, stale in MOVES:
        savepoint = world.session.begin_nested()
        world.do(operation, stale=stale)
        tried += 1
        if depth > 1 and (world.model, world.held, world.stale) != before:
            tried += walk(world, depth - 1, been)
        savepoint.rollback()
        world.session.expire_all()
        world.model, world.held, world.stale = before
    return tried


def test_every_order_of_operations_to_a_depth(engine: Engine) -> None:
    with Session(engine) as session:
        assert walk(World(session, "walk"), DEPTH, {}) > 1000
        session.rollback()


class Wandering(RuleBasedStateMachine):
    """Orders of operations at random, longer than the walk."""

    engine: Engine
    numbers = itertools.count()

    @initialize()
    def begin(self) -> None:
        self.session = Session(self.engine)
        self.world = World(self.session, f"wander-{next(self.numbers)}")

    def teardown(self) -> None:
        if hasattr(self, "session"):
            self.session.rollback()
            self.session.close()


def _rule(operation: str, stale: bool) -> Callable[[Wandering], None]:
    def move(self: Wandering) -> None:
        self.world.do(operation, stale=stale)

    return move


for _operation in OPERATIONS:
    setattr(Wandering, _operation, rule()(_rule(_operation, False)))
for _operation in WORKERS:
    setattr(Wandering, f"stale_{_operation}", rule()(_rule(_operation, True)))


def test_random_orders_of_operations(engine: Engine) -> None:
    Wandering.engine = engine
    run_state_machine_as_test(
        Wandering,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize(
    "change",
    [
        "status = 'succeeded', fine_tuned_model = 'x', finished_at = now()",  # queued cannot succeed
        "status = 'running', worker = 'w', lease_expires_at = now()",  # a claim raises the epoch
        "status = 'failed', finished_at = now()",  # a failure has a reason
        "status = 'cancelled'",  # the end has a time
        "status = 'nonsense'",
        "epoch = -1",
        "worker = 'w'",
        "cancel_requested_at = now()",  # a queued job is cancelled at once, not asked
        "pause_requested_at = now()",
    ],
)
def test_hand_typed_sql_cannot_break_a_job(engine: Engine, change: str) -> None:
    with Session(engine) as session:
        wishes.create(session, values("typed"))
        with pytest.raises(IntegrityError):
            session.execute(text(f"UPDATE jobs SET {change} WHERE id = 'typed'"))  # noqa: S608
        session.rollback()


@pytest.mark.parametrize("status", ["queued", "running", "paused", "failed"])
def test_an_ended_job_stays_ended(engine: Engine, status: str) -> None:
    with Session(engine) as session:
        wishes.create(session, values("ended"))
        wishes.cancel(session, "ended", OWNER)
        with pytest.raises(IntegrityError):
            session.execute(text(f"UPDATE jobs SET status = '{status}' WHERE id = 'ended'"))  # noqa: S608
        session.rollback()
