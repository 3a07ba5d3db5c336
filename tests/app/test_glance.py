"""The poll of one job, the short way: it says what the usual way says, and to nobody else."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from app import glance, standing
from app.apikey import make_key
from app.database import WorkerDatabase
from app.lifecycle import claims
from app.tables import now
from tests.app.conftest import Api
from tests.app.test_keys import make
from tests.app.test_turns import JOBS, create
from tests.app.test_turns import file_id as file_id

LEASE = timedelta(minutes=5)


@pytest.fixture
def database(api: Api) -> Iterator[WorkerDatabase]:
    database = WorkerDatabase(api.settings)
    yield database
    database.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """What the short way said, in order; None where it let the request pass. It is only watched."""
    said: list[bytes | None] = []
    real = glance.Glances._answer

    async def watched(self: glance.Glances, scope: Any, job_id: str) -> bytes | None:
        said.append(await real(self, scope, job_id))
        return said[-1]

    monkeypatch.setattr(glance.Glances, "_answer", watched)
    monkeypatch.setattr(standing, "POLLED", 60.0)  # a busy machine is no reason to take the usual way
    return said


def ended(http: httpx2.Client, file_id: str) -> str:
    """A job that stands nowhere in the queue."""
    job_id = str(create(http, file_id).json()["id"])
    assert http.post(f"{JOBS}/{job_id}/cancel").status_code == 200
    return job_id


def usual(http: httpx2.Client, job_id: str) -> httpx2.Response:
    """The same question in a form that only the usual way answers."""
    return http.get(f"{JOBS}/{job_id}?usual")


def test_it_says_what_the_usual_way_says_in_every_state(
    http: httpx2.Client, file_id: str, database: WorkerDatabase, short: list[bytes | None]
) -> None:
    extras: dict[str, Any] = {
        "hyperparameters": {"learning_rate": 1e-8, "n_epochs": 2},
        "metadata": {"who": "Zoë", "emoji": "🦆"},
        "suffix": "x",
    }
    job_id = create(http, file_id, **extras).json()["id"]

    def step(work: Callable[[Any], object]) -> None:
        with database.transaction() as session:
            work(session)
        asked = [http.get(f"{JOBS}/{job_id}") for _ in range(2)]
        expected = usual(http, job_id)
        assert short[-2:] == [expected.content] * 2, "once made and once remembered"
        assert [answer.content for answer in asked] == [expected.content] * 2
        assert asked[0].headers["content-type"] == expected.headers["content-type"]
        assert "x-request-id" in asked[0].headers

    held: list[claims.Claim] = []

    def claim(session: Any) -> None:
        found = claims.claim(session, job_id, "w", LEASE)
        assert found is not None
        held.append(found)

    usual(http, job_id)
    step(lambda _: None)
    step(claim)
    step(lambda session: claims.beat(session, held[0], LEASE, {"step": 3, "total_steps": 9}))
    step(lambda session: claims.fail(session, held[0], claims.JobError("code", "Why.", "model")))


def test_it_answers_nobody_else(
    api: Api, http: httpx2.Client, file_id: str, short: list[bytes | None]
) -> None:
    job_id = ended(http, file_id)
    assert http.get(f"{JOBS}/{job_id}").status_code == 200
    assert short[-1] is not None
    wrong = f"{api.key[:12]}{make_key()[12:]}"
    with api.http(make(http, scopes=["files:read"])["value"]) as unscoped, api.http(wrong) as forged:
        for client, status in ((unscoped, 403), (forged, 401), (api.http(api.stranger_key), 404)):
            answers = [client.get(f"{JOBS}/{job_id}") for _ in range(2)]
            assert [answer.status_code for answer in answers] == [status] * 2
            assert short[-2:] == [None, None]
    with httpx2.Client(base_url=api.url) as nobody:
        assert nobody.get(f"{JOBS}/{job_id}").status_code == 401
        twice = [("authorization", f"Bearer {api.key}"), ("authorization", "Bearer x")]
        nobody.get(f"{JOBS}/{job_id}", headers=twice)
        assert short[-1] is None


def test_a_key_that_was_revoked_or_is_over_is_refused_with_the_next_poll(
    api: Api, http: httpx2.Client, file_id: str, database: WorkerDatabase, short: list[bytes | None]
) -> None:
    job_id = ended(http, file_id)
    for change in ({"revoked_at": now}, {"expires_at": now}):
        key = make(http, owner=api.settings.organization)
        with api.http(key["value"]) as polling:
            assert [polling.get(f"{JOBS}/{job_id}").status_code for _ in range(3)] == [200] * 3
            assert short[-1] is not None
            name = next(iter(change))
            with database.transaction() as session:
                session.execute(
                    text(f"UPDATE api_keys SET {name} = now() WHERE id = :id"),  # noqa: S608
                    {"id": key["id"]},
                )
            assert polling.get(f"{JOBS}/{job_id}").status_code == 401
            assert short[-1] is None


def test_a_limited_key_is_counted(
    api: Api, http: httpx2.Client, file_id: str, short: list[bytes | None]
) -> None:
    job_id = ended(http, file_id)
    limits = {"requests_per_minute": 3}
    with api.http(make(http, owner=api.settings.organization, limits=limits)["value"]) as limited:
        statuses = [limited.get(f"{JOBS}/{job_id}").status_code for _ in range(5)]
    assert statuses == [200] * 3 + [429] * 2
    assert short[-5:] == [None] * 5


def test_the_use_of_a_key_is_noted_though_it_only_polls(
    api: Api, http: httpx2.Client, file_id: str, database: WorkerDatabase, short: list[bytes | None]
) -> None:
    job_id = ended(http, file_id)
    key = make(http, owner=api.settings.organization)

    def used() -> Any:
        return http.get(f"/v1/api_keys/{key['id']}").json()["last_used_at"]

    with api.http(key["value"]) as polling:
        polling.get(f"{JOBS}/{job_id}")
        before = used()
        with database.transaction() as session:
            session.execute(
                text("UPDATE api_keys SET last_used_at = now() - interval '3 minutes' WHERE id = :id"),
                {"id": key["id"]},
            )
        assert used() < before
        polling.get(f"{JOBS}/{job_id}")
        assert used() >= before


def test_a_job_that_is_not_there_is_not_found(http: httpx2.Client, short: list[bytes | None]) -> None:
    assert http.get(f"{JOBS}/ftjob-0").status_code == 404
    assert short == [None]


def test_a_job_made_since_a_long_queue_was_counted_has_no_place_yet(
    http: httpx2.Client, file_id: str, short: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = str(create(http, file_id).json()["id"])
    assert http.get(f"{JOBS}/{counted}").json()["queue"]["position"] == 1
    monkeypatch.setattr(standing, "FEW", 0)
    monkeypatch.setattr(standing, "SHARE", 1_000_000)  # counting is not due for long
    made = str(create(http, file_id).json()["id"])
    short.clear()
    assert http.get(f"{JOBS}/{made}").json()["queue"] is None
    assert len(short) == 1
    assert short[0] is not None
