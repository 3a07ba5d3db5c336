"""A key's limits on running jobs and storage, held to when everybody comes at once."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from app.database import WorkerDatabase
from app.keyring import ApiKey
from app.lifecycle import announcements, claims, turns, wishes
from app.lifecycle.offers import Offer
from app.settings import Settings
from app.tables import File, Job
from tests.app.conftest import Api
from tests.app.test_keys import make

LEASE = timedelta(minutes=1)
ROW = b'{"text": "0123456789012345678901234567890123456789"}\n'


class Queue:
    """Jobs of keys with limits, as the worker and the dispatcher see them."""

    def __init__(self, database: WorkerDatabase) -> None:
        self.database = database
        with database.transaction() as session:
            session.add(
                File(
                    id="file-1",
                    owner="me",
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

    def add_key(self, key_id: str, running_jobs: int | None) -> None:
        with self.database.transaction() as session:
            session.add(
                ApiKey(
                    id=key_id, owner="me", name="k", secret_sha256="", scopes=[], running_jobs=running_jobs
                )
            )

    def add_job(self, job_id: str, key_id: str | None) -> None:
        values: dict[str, Any] = {
            "id": job_id,
            "owner": "me",
            "key_id": key_id,
            "request_sha256": job_id,
            "model": "tiny-gpt2",
            "source": "builtin:tiny-gpt2",
            "training_file": "file-1",
            "seed": 1,
            "method": {},
            "hyperparameters": {},
            "recipe": {},
            "max_attempts": 3,
            "idempotency_key": None,
        }
        with self.database.transaction() as session:
            wishes.create(session, values)

    def claim(self, job_id: str) -> claims.Claim | None:
        with self.database.transaction() as session:
            return claims.claim(session, job_id, "w", LEASE)

    def claim_next(self) -> claims.Claim | None:
        with self.database.transaction() as session:
            return turns.claim_next(session, Offer("w"), LEASE)

    def due(self) -> list[str]:
        with self.database.transaction() as session:
            return list(announcements.due(session, timedelta(seconds=30), timedelta(seconds=9)))

    def announced(self, job_id: str) -> None:
        with self.database.transaction() as session:
            announcements.mark_dispatched(session, job_id)

    def waits_unheard(self) -> bool:
        with self.database.transaction() as session:
            return announcements.waits_unheard(session, timedelta(0), timedelta(seconds=30), Offer("w"))

    def end(self, held: claims.Claim) -> None:
        with self.database.transaction() as session:
            claims.fail(session, held, claims.JobError("test", "ended"))

    def running(self) -> int:
        with self.database.transaction() as session:
            return session.query(Job).where(Job.status == "running").count()


@pytest.fixture
def queue(database_url: str) -> Any:
    database = WorkerDatabase(Settings(database_url=database_url))
    yield Queue(database)
    database.close()


def test_jobs_beyond_the_limit_wait_and_keep_nobody_waiting(queue: Queue) -> None:
    queue.add_key("limited", 1)
    for number in range(6):
        queue.add_job(f"ftjob-{number}", "limited")
    queue.add_job("ftjob-other", None)
    first = queue.claim("ftjob-0")
    assert first is not None
    assert queue.claim("ftjob-1") is None
    assert queue.due() == ["ftjob-other"], "those held back take no place in the queue"
    other = queue.claim_next()
    assert other is not None
    assert other.job_id == "ftjob-other"
    assert queue.claim_next() is None
    queue.end(first)
    assert "ftjob-1" in queue.due(), "the end of one lets the next be announced at once"
    second = queue.claim_next()
    assert second is not None
    assert second.job_id == "ftjob-1"


def test_a_job_that_was_announced_too_early_is_announced_again_without_delay(queue: Queue) -> None:
    queue.add_key("limited", 1)
    for number in range(2):
        queue.add_job(f"ftjob-{number}", "limited")
        queue.announced(f"ftjob-{number}")
    assert queue.waits_unheard()
    first = queue.claim("ftjob-0")
    assert first is not None
    assert not queue.waits_unheard(), "no worker is deaf to a job that is held back"
    assert queue.claim("ftjob-1") is None
    queue.end(first)
    assert queue.due() == ["ftjob-1"]


def test_claims_at_the_same_moment_do_not_exceed_the_limit(queue: Queue) -> None:
    queue.add_key("limited", 2)
    queue.add_key("unlimited", None)
    for number in range(8):
        queue.add_job(f"ftjob-{number}", "limited")
    with ThreadPoolExecutor(8) as threads:
        for round_ in range(5):
            # Half of them by name, half whichever comes: the two lock in one order, or they would lock up.
            wanted = [
                threads.submit(queue.claim, f"ftjob-{number}")
                if number % 2
                else threads.submit(queue.claim_next)
                for number in range(8)
            ]
            held = [claim for future in wanted if (claim := future.result()) is not None]
            assert len(held) == queue.running() == 2, round_
            for claim in held:
                with queue.database.transaction() as session:
                    claims.release(session, claim, "drained")


def upload(http: httpx2.Client, data: bytes = ROW) -> httpx2.Response:
    form: dict[str, Any] = {"data": {"purpose": "fine-tune"}, "files": {"file": ("x.jsonl", data)}}
    return http.post("/v1/files", **form)


def test_twenty_uploads_at_once_store_no_more_than_the_limit(api: Api, http: httpx2.Client) -> None:
    made = make(http, owner="storer", limits={"storage_bytes": 5 * len(ROW)})
    with api.http(made["value"]) as storer, ThreadPoolExecutor(20) as threads:
        before = len(list((api.settings.storage_folder / "files").glob("*")))
        answers = list(threads.map(lambda _: upload(storer), range(20)))
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [400] * 15
        refusals = [answer.json()["error"] for answer in answers if answer.status_code == 400]
        assert {refusal["code"] for refusal in refusals} == {"storage_limit_exceeded"}
        assert all(f"{5 * len(ROW):,} bytes" in refusal["message"] for refusal in refusals)
        assert len(list((api.settings.storage_folder / "files").glob("*"))) == before + 5
        kept = storer.get("/v1/files").json()["data"]
        # Full: no job either, whose model would be stored.
        job = {"model": "tiny-gpt2", "training_file": kept[0]["id"]}
        refused = storer.post("/v1/fine_tuning/jobs", json=job)
        assert refused.json()["error"]["code"] == "storage_limit_exceeded"
        assert storer.delete(f"/v1/files/{kept[1]['id']}").status_code == 200
        assert storer.post("/v1/fine_tuning/jobs", json=job).status_code == 200
        assert upload(storer).status_code == 200


def test_a_limit_of_storage_is_exact_to_the_byte(api: Api, http: httpx2.Client) -> None:
    made = make(http, owner="exact", limits={"storage_bytes": len(ROW)})
    with api.http(made["value"]) as storer:
        assert upload(storer, ROW + b"\n").status_code == 400
        assert upload(storer, ROW).status_code == 200


def test_what_is_announced_is_reserved(api: Api, http: httpx2.Client) -> None:
    made = make(http, owner="announcer", limits={"storage_bytes": 100})
    body = {"bytes": 60, "filename": "x", "mime_type": "a/b", "purpose": "fine-tune"}
    with api.http(made["value"]) as storer, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: storer.post("/v1/uploads", json=body), range(8)))
        good = [answer for answer in answers if answer.status_code == 200]
        assert len(good) == 1
        assert storer.post(f"/v1/uploads/{good[0].json()['id']}/cancel").status_code == 200
        assert storer.post("/v1/uploads", json=body).status_code == 200
