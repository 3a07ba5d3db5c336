"""Deliveries on real rows to a real receiver: each event once, again until it is taken, by many at once."""

import asyncio
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError, OpenAI
from sqlalchemy import select, text, update

from app.database import Database, run
from app.lifecycle import wishes
from app.settings import Settings
from app.tables import File, now
from app.watch.traffic import Traffic
from app.webhooks import deliveries, event, secret
from app.webhooks.courier import Courier
from app.webhooks.post import Outcome
from app.webhooks.rows import WebhookDelivery, WebhookEndpoint
from tests.app.receiver import Received, Receiver, receiving

RETRIES = tuple(timedelta(milliseconds=1) for _ in range(4))


class World:
    """A database, a receiver, and couriers between them."""

    def __init__(self, settings: Settings, receiver: Receiver) -> None:
        self.settings, self.receiver = settings, receiver
        self.database = Database(settings)
        self.couriers: list[Courier] = []
        self.secrets: dict[str, str] = {}
        self.jobs = 0

    def courier(self) -> Courier:
        self.couriers.append(Courier(self.settings, self.database, Traffic()))
        return self.couriers[-1]

    async def endpoint(self, path: str, kinds: tuple[str, ...] = event.TYPES, owner: str = "me") -> str:
        endpoint_id, salt = f"we_{path[1:]}", secret.new_salt()
        made = secret.derive(secret.read_key(self.settings.home), endpoint_id, salt)
        self.secrets[path] = made
        row = WebhookEndpoint(
            id=endpoint_id,
            owner=owner,
            name=path,
            url=self.receiver.url + path,
            event_types=list(kinds),
            secret_salt=salt,
            secret_hint=secret.hint(made),
        )
        async with self.database.transaction() as session:
            session.add(row)
        return endpoint_id

    async def ended_job(self, owner: str = "me", then: Callable[[], object] = lambda: None) -> str:
        """A job that is cancelled while it is queued: the shortest way to an event. `then` comes before the
        commit."""
        self.jobs += 1
        job_id = f"ftjob-{self.jobs}"
        values: dict[str, Any] = {
            "id": job_id,
            "owner": owner,
            "idempotency_key": None,
            "request_sha256": "",
            "model": "tiny-gpt2",
            "source": "builtin:tiny-gpt2",
            "training_file": "file-1",
            "seed": 42,
            "method": {},
            "hyperparameters": {},
            "recipe": {},
            "max_attempts": 1,
        }
        async with self.database.transaction() as session:
            await run(session, wishes.create, values)
            await run(session, wishes.cancel, job_id, owner)
            then()
        return job_id

    async def carry(self, courier: Courier | None = None) -> None:
        """Send what is due until nothing is."""
        courier = courier or self.courier()
        while True:
            await courier.send_due()
            if not courier.is_busy:
                return
            while courier.is_busy:
                await courier.pause(1)

    async def rows(self, endpoint_id: str) -> list[WebhookDelivery]:
        async with self.database.transaction() as session:
            query = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
            return list(await session.scalars(query.order_by(WebhookDelivery.seq)))

    async def row(self, endpoint_id: str) -> WebhookDelivery:
        (row,) = await self.rows(endpoint_id)
        return row

    async def until(self, endpoint_id: str, status: str, courier: Courier) -> WebhookDelivery:
        """Carry until a delivery is that; retries are a millisecond away."""
        while (row := await self.row(endpoint_id)).status != status:
            await self.carry(courier)
            await asyncio.sleep(0.01)
        return row

    async def ended(self, endpoint_id: str) -> WebhookDelivery:
        """A delivery, once another process has ended it."""
        for _ in range(1200):
            row = await self.row(endpoint_id)
            if row.status != "pending":
                return row
            await asyncio.sleep(0.05)
        raise AssertionError(row.log)

    async def ask_again(self, endpoint_id: str) -> None:
        """What `redeliver` does."""
        async with self.database.transaction() as session:
            await run(session, deliveries.ask_again, (await self.row(endpoint_id)).id)

    async def change(self, statement: Any) -> None:
        async with self.database.transaction() as session:
            await session.execute(statement)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
async def world(database_url: str, tmp_path: Path, receiver: Receiver) -> AsyncIterator[World]:
    settings = Settings(
        home=tmp_path,
        database_url=database_url,
        webhook_allow=(ip_network("127.0.0.0/8"),),
        webhook_retries=RETRIES,
        webhook_timeout=timedelta(seconds=30),
    )
    receiver.received.clear()
    world = World(settings, receiver)
    async with world.database.transaction() as session:
        known = {"bytes": 1, "sha256": "", "filename": "f", "format": "jsonl", "rows": 1}
        session.add(File(id="file-1", owner="me", purpose="fine-tune", status="processed", **known))
    yield world
    for courier in world.couriers:
        await courier.close()
    await world.database.close()


def unwrap(received: Received, secret: str) -> Any:
    with OpenAI(base_url="http://unused", api_key="k") as client:
        return client.webhooks.unwrap(received.body, received.headers, secret=secret)


async def test_the_sdk_verifies_and_reads_what_is_sent(world: World) -> None:
    endpoint = await world.endpoint("/one")
    job_id = await world.ended_job()
    await world.carry()
    (received,) = world.receiver.of("/one")
    read = unwrap(received, world.secrets["/one"])
    assert (type(read).__name__, read.type) == (
        "FineTuningJobCancelledWebhookEvent",
        "fine_tuning.job.cancelled",
    )
    assert type(read).model_validate_json(received.body, strict=True) == read
    assert (read.data.id, read.id, read.object) == (job_id, received.id, "event")
    assert received.headers["content-type"] == "application/json"
    with pytest.raises(InvalidWebhookSignatureError):
        unwrap(received, "whsec_" + "A" * 43 + "=")
    with pytest.raises(InvalidWebhookSignatureError):
        unwrap(Received("/", received.headers, received.body + b" "), world.secrets["/one"])
    row = await world.row(endpoint)
    assert (row.status, row.attempts, row.log[0]["status_code"]) == ("delivered", 1, 200)


async def test_only_those_hear_who_asked(world: World) -> None:
    await world.endpoint("/failures", (event.TYPES[1],))
    await world.endpoint("/theirs", owner="stranger")
    await world.endpoint("/gone")
    await world.change(update(WebhookEndpoint).where(WebhookEndpoint.id == "we_gone").values(deleted_at=now))
    await world.endpoint("/mine")
    await world.ended_job()
    async with world.database.transaction() as session:
        heard = await session.scalars(select(WebhookDelivery.endpoint_id))
    assert heard.all() == ["we_mine"]


async def test_endpoints_of_one_owner_hear_of_one_event(world: World) -> None:
    for path in ("/a", "/b"):
        await world.endpoint(path)
    await world.ended_job()
    await world.carry()
    (a,), (b,) = world.receiver.of("/a"), world.receiver.of("/b")
    assert (a.id, a.body) == (b.id, b.body)
    unwrap(a, world.secrets["/a"])
    unwrap(b, world.secrets["/b"])


async def test_it_is_sent_again_until_it_is_taken_under_one_id_with_a_fresh_signature(world: World) -> None:
    endpoint = await world.endpoint("/stubborn")
    world.receiver.answers["/stubborn"].extend([500, 404, (302, f"{world.receiver.url}/elsewhere"), 204])
    await world.ended_job()
    row = await world.until(endpoint, "delivered", world.courier())
    received = world.receiver.of("/stubborn")
    assert len(received) == row.attempts == 4
    assert {each.id for each in received} == {row.event_id}
    assert {each.body for each in received} == {row.body.encode()}
    for each in received:
        unwrap(each, world.secrets["/stubborn"])
    assert [line["status_code"] for line in row.log] == [500, 404, 302, 204]
    assert [bool(line["error"]) for line in row.log] == [True, True, True, False]
    assert world.receiver.of("/elsewhere") == [], "redirects are not followed"
    # Older than the SDK takes: a signature of the first try would not do.
    await world.change(update(WebhookDelivery).values(created_at=now - timedelta(hours=1)))
    await world.ask_again(endpoint)
    await world.carry()
    unwrap(world.receiver.of("/stubborn")[-1], world.secrets["/stubborn"])


async def test_nobody_is_asked_for_ever(world: World) -> None:
    endpoint = await world.endpoint("/never")
    world.receiver.answers["/never"].extend([500] * 5)
    await world.ended_job()
    courier = world.courier()
    row = await world.until(endpoint, "failed", courier)
    assert row.attempts == len(RETRIES) + 1 == len(world.receiver.of("/never"))
    await world.carry(courier)
    assert len(world.receiver.of("/never")) == 5
    await world.ask_again(endpoint)
    again = await world.until(endpoint, "delivered", courier)
    assert (again.attempts, again.tries) == (6, 1)
    assert len({each.id for each in world.receiver.of("/never")}) == 1


def test_waits_grow_as_the_settings_say_and_end() -> None:
    retries = Settings().webhook_retries
    for tries, planned in enumerate(retries, 1):
        wait = deliveries.wait(tries, retries, timedelta(0))
        assert wait is not None
        assert planned <= wait <= planned * 1.2
    assert deliveries.wait(len(retries) + 1, retries, timedelta(0)) is None
    assert timedelta(days=3) < sum(retries, timedelta(0)) < timedelta(days=4)
    assert deliveries.wait(1, retries, timedelta(hours=1)) == timedelta(hours=1), "the receiver's wish"


async def test_410_disables_the_endpoint_and_naming_its_url_enables_it(world: World) -> None:
    endpoint = await world.endpoint("/quits")
    world.receiver.answers["/quits"].append(410)
    await world.ended_job()
    await world.ended_job()
    await world.carry()
    assert [row.status for row in await world.rows(endpoint)] == ["failed", "failed"]
    await world.ended_job()
    assert len(await world.rows(endpoint)) == 2, "a disabled endpoint hears of nothing"
    assert len(world.receiver.of("/quits")) == 1


async def test_410_from_an_address_that_was_replaced_meanwhile_disables_nothing(world: World) -> None:
    endpoint, answer = await world.endpoint("/moves"), threading.Event()
    world.receiver.answers["/moves"].extend([answer])
    await world.ended_job()
    async with world.database.transaction() as session:
        (claimed,) = await run(session, deliveries.claim, 1, timedelta(seconds=60))
    await world.change(update(WebhookEndpoint).values(url=f"{world.receiver.url}/new"))
    async with world.database.transaction() as session:
        await run(session, deliveries.record, claimed, Outcome(410, "It answered 410.", 0.1), RETRIES)
        disabled = await session.scalar(
            select(WebhookEndpoint.disabled_at).where(WebhookEndpoint.id == endpoint)
        )
    assert disabled is None


async def test_a_deleted_endpoint_is_sent_nothing_more(world: World) -> None:
    endpoint = await world.endpoint("/leaves")
    await world.ended_job()
    await world.change(update(WebhookEndpoint).values(deleted_at=now))
    await world.carry()
    assert world.receiver.of("/leaves") == []
    async with world.database.transaction() as session:
        await run(session, deliveries.forget, timedelta(0))
    assert await world.rows(endpoint) == []


async def test_two_dispatchers_share_and_never_double(world: World) -> None:
    paths = [f"/shared{number}" for number in range(30)]
    for path in paths:
        await world.endpoint(path)
    for _ in range(4):
        await world.ended_job()
    others = Database(world.settings), Database(world.settings)
    couriers = [Courier(world.settings, database, Traffic()) for database in others]
    await asyncio.gather(*(world.carry(courier) for courier in couriers))
    await world.carry(couriers[0])  # what one was about to find when the other held it
    seen = Counter((each.path, each.id) for each in world.receiver.received)
    assert set(seen.values()) == {1}
    assert len(seen) == 30 * 4
    for courier, database in zip(couriers, others, strict=True):
        await courier.close()
        await database.close()


async def test_a_slow_receiver_keeps_only_itself_waiting_and_sees_events_one_by_one(world: World) -> None:
    slow, answer = await world.endpoint("/slow"), threading.Event()
    world.receiver.answers["/slow"].append(answer)
    await world.ended_job()
    await world.ended_job()
    courier = world.courier()
    await courier.send_due()
    await asyncio.to_thread(world.receiver.wait, "/slow", 1)
    await world.endpoint("/quick")
    await world.ended_job()
    await courier.send_due()
    await asyncio.to_thread(world.receiver.wait, "/quick", 1)
    assert len(world.receiver.of("/slow")) == 1
    answer.set()
    while courier.is_busy:
        await courier.pause(1)
    await world.carry(courier)
    assert [row.status for row in await world.rows(slow)] == ["delivered"] * 3
    assert [each.id for each in world.receiver.of("/slow")] == [
        row.event_id for row in await world.rows(slow)
    ]


async def test_an_owner_of_many_slow_receivers_keeps_no_other_owner_waiting(world: World) -> None:
    answer = threading.Event()
    for number in range(deliveries.PER_OWNER + 2):
        await world.endpoint(f"/stuck{number}")
        world.receiver.answers[f"/stuck{number}"].append(answer)
    await world.ended_job()
    couriers = world.courier(), world.courier()
    for courier in couriers:
        await courier.send_due()
    await world.endpoint("/theirs", owner="other")
    await world.ended_job("other")
    await couriers[0].send_due()
    await asyncio.to_thread(world.receiver.wait, "/theirs", 1)
    await couriers[1].send_due()
    async with world.database.transaction() as session:
        rows = await session.scalars(select(WebhookDelivery.endpoint_id).where(WebhookDelivery.attempts > 0))
        assert len([each for each in rows if each != "we_theirs"]) == deliveries.PER_OWNER
    answer.set()
    await world.carry(couriers[0])
    await world.carry(couriers[1])
    await world.carry(couriers[0])
    assert len(world.receiver.received) == deliveries.PER_OWNER + 3


async def test_whoever_lost_the_lease_writes_no_result(world: World) -> None:
    endpoint = await world.endpoint("/fenced")
    await world.ended_job()
    async with world.database.transaction() as session:
        (stale,) = await run(session, deliveries.claim, 1, timedelta(0))
    async with world.database.transaction() as session:
        (held,) = await run(session, deliveries.claim, 1, timedelta(seconds=60))
        assert await run(session, deliveries.claim, 1, timedelta(seconds=60)) == []
        assert await run(session, deliveries.record, stale, Outcome(500, "It failed.", 0), RETRIES) is None
        assert await run(session, deliveries.record, held, Outcome(200, None, 0), RETRIES) == "delivered"
    assert (await world.row(endpoint)).attempts == 2


async def test_while_both_secrets_are_active_either_verifies(world: World) -> None:
    endpoint = await world.endpoint("/rotates")
    old = world.secrets["/rotates"]
    salt = secret.new_salt()
    new = secret.derive(secret.read_key(world.settings.home), endpoint, salt)
    rotated = {
        "secret_salt": salt,
        "secret_hint": secret.hint(new),
        "old_secret_salt": WebhookEndpoint.secret_salt,
        "old_secret_until": now + timedelta(hours=24),
    }
    await world.change(update(WebhookEndpoint).values(rotated))
    await world.ended_job()
    await world.carry()
    (both,) = world.receiver.of("/rotates")
    assert unwrap(both, old) == unwrap(both, new)
    await world.change(update(WebhookEndpoint).values(old_secret_until=now))
    await world.ended_job()
    await world.carry()
    later = world.receiver.of("/rotates")[-1]
    unwrap(later, new)
    with pytest.raises(InvalidWebhookSignatureError):
        unwrap(later, old)


async def test_the_database_holds_no_secret_and_a_lost_key_is_said(world: World) -> None:
    endpoint = await world.endpoint("/sealed")
    async with world.database.transaction() as session:
        dump = str((await session.execute(text("SELECT * FROM webhook_endpoints"))).all())
    assert endpoint in dump
    assert world.secrets["/sealed"].removeprefix("whsec_") not in dump
    key = world.settings.home / "webhook_key"
    assert key.stat().st_mode & 0o777 == 0o600
    kept = key.read_text()
    courier = world.courier()
    await world.ended_job()
    for wrong in ("00" * 32, "nonsense"):
        key.write_text(wrong)
        await world.carry(courier)
        await asyncio.sleep(0.01)
    row = await world.row(endpoint)
    assert ["webhook_key" in line["error"] for line in row.log] == [True] * len(row.log)
    assert world.receiver.of("/sealed") == []
    key.write_text(kept)
    await world.ask_again(endpoint)
    await world.until(endpoint, "delivered", courier)
    unwrap(world.receiver.of("/sealed")[0], world.secrets["/sealed"])


def test_all_processes_that_start_at_once_have_one_key(tmp_path: Path) -> None:
    keys: list[bytes] = []
    read: Callable[[], None] = lambda: keys.append(secret.read_key(tmp_path))  # noqa: E731
    threads = [threading.Thread(target=read) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 16
    assert len(set(keys)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["webhook_key"]


async def test_an_end_that_is_rolled_back_is_told_to_nobody(world: World) -> None:
    endpoint = await world.endpoint("/rolled")
    with pytest.raises(ZeroDivisionError):
        await world.ended_job(then=lambda: 1 / 0)
    assert await world.rows(endpoint) == []


@contextmanager
def api_process(settings: Settings, redis_url: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A whole API process on a port that nobody needs to know."""
    assert settings.database_url is not None
    environment = {
        "FINETUNED_HOME": str(settings.home),
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "REDIS_URL": redis_url,
        "FINETUNED_WEBHOOK_ALLOW": "127.0.0.0/8, ::1/128",
        "FINETUNED_WEBHOOK_RETRIES": "60, 60",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app", "--port", "0"],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_killed_while_it_sends_the_next_process_sends_it_again_under_the_same_id(
    world: World, redis_url: str
) -> None:
    endpoint, never = await world.endpoint("/killed"), threading.Event()
    world.receiver.answers["/killed"].append(never)
    await world.ended_job()
    with api_process(world.settings, redis_url) as process:
        await asyncio.to_thread(world.receiver.wait, "/killed", 1)
        process.kill()
    row = await world.row(endpoint)
    assert (row.status, row.attempts, row.log) == ("pending", 1, [])
    await world.change(update(WebhookDelivery).values(leased_until=now))
    with api_process(world.settings, redis_url):
        first, second = await asyncio.to_thread(world.receiver.wait, "/killed", 2)
        never.set()
        row = await world.ended(endpoint)
    assert (first.id, first.body) == (second.id, second.body) == (row.event_id, row.body.encode())
    assert (row.status, row.attempts) == ("delivered", 2)
    unwrap(second, world.secrets["/killed"])
