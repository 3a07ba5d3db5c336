"""What Prometheus is told: true, whichever process is asked, and nothing that a user wrote."""

import re
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import delete, text, update
from sqlalchemy.dialects.postgresql import insert

from app.apikey import make_key
from app.auth import store_key
from app.database import WorkerDatabase
from app.errors import InvalidRequest, TooMany
from app.generator import Generation, Piece, Usage
from app.tables import Job, Worker, now
from app.watch.traffic import Traffic
from app.webhooks.rows import WebhookDelivery, WebhookEndpoint
from tests.app.conftest import Api, serving
from tests.operations.conftest import Scrape, read
from tests.stand_ins.reporter import Reporter

CANARY = "canary7"


def make_job(client: OpenAI, name: str = "a.jsonl", **more: object) -> str:
    file = client.files.create(file=(name, b'{"text": "one"}\n' * 9), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file.id, **more)  # type: ignore[arg-type]
    return job.id


def test_figures_are_for_keys_that_may_read_them(api: Api, database: WorkerDatabase) -> None:
    scraper = make_key()
    with database.transaction() as session:
        store_key(session, scraper, owner="prometheus", name="scraper", scopes=["metrics:read"])
    assert httpx2.get(f"{api.url}/metrics").status_code == 401, "from this machine itself too"
    assert api.http(api.stranger_key).get("/metrics").status_code == 403
    with api.http(scraper) as prometheus:
        assert prometheus.get("/metrics").status_code == 200
        assert prometheus.get("/v1/files").status_code == 403, "and for nothing else"


def test_both_formats_parse_and_every_name_keeps_to_the_conventions(http: httpx2.Client) -> None:
    plain = http.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    modern = http.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert modern.headers["content-type"].startswith("application/openmetrics-text")
    told = parse_openmetrics(modern.text)  # type: ignore[no-untyped-call]
    assert "finetuned_jobs" in {family.name for family in told}
    for family in text_string_to_metric_families(plain.text):
        assert family.documentation, family.name
        assert re.fullmatch(r"(finetuned|process|python)(_[a-z0-9]+)*", family.name)
        if family.name.startswith("finetuned_"):
            assert not re.search(r"_(ms|minutes|mb|gb|kb|milliseconds|percent)(_|$)", family.name)


def test_jobs_and_their_training_are_told_as_the_rows_are(
    scrape: Scrape, client: OpenAI, api: Api, database: WorkerDatabase
) -> None:
    first, second = make_job(client), make_job(client)
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == first).values(not_before=now - timedelta(seconds=500)))
    waiting = scrape()
    assert waiting['finetuned_jobs{status="queued"}'] == 2
    assert waiting['finetuned_jobs{status="failed"}'] == 0, "what nobody is in stands there as 0"
    assert waiting["finetuned_queue_jobs"] == 2
    assert 499 < waiting["finetuned_queue_oldest_seconds"] < 600
    assert "finetuned_training_step_mean_seconds" not in waiting, "nothing trains"

    worker = Reporter(api.settings, database, first)
    worker.prepare()
    worker.steps(1, 2, 3)
    running = scrape()
    assert running['finetuned_jobs{status="running"}'] == 1
    assert running["finetuned_training_tokens_per_second"] == 9.0
    assert running["finetuned_training_step_longest_seconds"] == pytest.approx(5 / 9)
    assert running["finetuned_training_memory_bytes"] == 1
    assert running["finetuned_training_silence_seconds"] < 60
    assert running['finetuned_job_start_wait_seconds{quantile="1"}'] > 0
    assert (
        running['finetuned_job_start_wait_seconds{quantile="1"}']
        <= running['finetuned_job_first_step_wait_seconds{quantile="1"}']
    )
    assert running["finetuned_running_jobs_expired"] == 0

    with database.transaction() as session:  # its worker is silent
        session.execute(
            update(Job).where(Job.id == first).values(lease_expires_at=now - timedelta(seconds=100))
        )
    silent = scrape()
    assert silent["finetuned_running_jobs_expired"] == 1
    assert silent["finetuned_running_jobs_beat_age_seconds"] >= 100 + api.settings.lease.total_seconds()
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == first).values(lease_expires_at=now + timedelta(hours=1)))
    worker.save(3)
    worker.succeed()
    client.fine_tuning.jobs.cancel(second)
    done = scrape()
    assert done['finetuned_jobs{status="succeeded"}'] == done['finetuned_jobs{status="cancelled"}'] == 1
    assert done["finetuned_training_tokens_per_second"] == done["finetuned_queue_oldest_seconds"] == 0
    assert done['finetuned_stored_objects{kind="models"}'] == 1
    assert done['finetuned_stored_bytes{kind="files"}'] > 18
    assert done["finetuned_database_bytes"] > 1e6
    assert done["finetuned_disk_free_bytes"] < done["finetuned_disk_size_bytes"]


def test_what_workers_were_told_of_and_nobody_claimed_shows(
    scrape: Scrape, client: OpenAI, database: WorkerDatabase
) -> None:
    job = make_job(client)
    assert scrape()["finetuned_queue_unclaimed_jobs"] == 0
    with database.transaction() as session:
        long_ago = now - timedelta(minutes=5)
        session.execute(update(Job).where(Job.id == job).values(not_before=long_ago, dispatched_at=now))
    assert scrape()["finetuned_queue_unclaimed_jobs"] == 1
    client.fine_tuning.jobs.cancel(job)


def test_a_job_that_its_keys_limit_holds_back_is_no_late_one(
    api: Api, scrape: Scrape, database: WorkerDatabase
) -> None:
    with api.client() as client:
        running, waiting = make_job(client), make_job(client)
    Reporter(api.settings, database, running)
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == waiting).values(not_before=now - timedelta(hours=9)))
        session.execute(text("UPDATE api_keys SET running_jobs = 1 WHERE owner = 'finetuned'"))
    assert scrape()["finetuned_queue_oldest_seconds"] == 0
    with database.transaction() as session:
        session.execute(text("UPDATE api_keys SET running_jobs = null"))
    assert scrape()["finetuned_queue_oldest_seconds"] >= 9 * 3600
    with api.client() as client:
        client.fine_tuning.jobs.cancel(waiting)


def test_workers_that_fell_silent_are_told_from_those_that_report(
    scrape: Scrape, database: WorkerDatabase
) -> None:
    nobody = scrape()
    assert nobody['finetuned_workers{state="ready"}'] == 0
    assert "finetuned_worker_heartbeat_age_seconds" not in nobody
    rows = [
        {"id": "a", "slots": 2, "busy": 1, "draining": False, "seen_at": now},
        {"id": "b", "slots": 4, "busy": 4, "draining": True, "seen_at": now},
        {"id": "c", "slots": 8, "busy": 8, "draining": False, "seen_at": now - timedelta(minutes=5)},
    ]
    with database.transaction() as session:
        for row in rows:
            session.execute(insert(Worker).values(host="h", version="1", **row))
    told = scrape()
    for state in ("ready", "draining", "silent"):
        assert told[f'finetuned_workers{{state="{state}"}}'] == 1
    assert told["finetuned_worker_slots"] == 2
    assert told["finetuned_worker_slots_busy"] == 1
    assert told["finetuned_worker_heartbeat_age_seconds"] < 60
    with database.transaction() as session:
        session.execute(delete(Worker))


def test_deliveries_that_wait_and_that_were_given_up_are_told(
    scrape: Scrape, database: WorkerDatabase
) -> None:
    endpoint = {"id": "we_1", "owner": "o", "name": "n", "url": "https://x", "event_types": []}
    delivery = {"endpoint_id": "we_1", "event_type": "e", "body": "{}", "due_at": now + timedelta(hours=1)}
    with database.transaction() as session:
        session.execute(insert(WebhookEndpoint).values(**endpoint, secret_salt="s", secret_hint="h"))
        old = now - timedelta(hours=2)
        two: list[dict[str, Any]] = [{"created_at": old}, {"status": "failed", "ended_at": now}]
        for number, more in enumerate(two):
            given = {**delivery, "id": f"d{number}", "event_id": f"e{number}", **more}
            session.execute(insert(WebhookDelivery).values(given))
    told = scrape()
    assert told["finetuned_webhook_deliveries_pending"] == 1
    assert told["finetuned_webhook_deliveries_failed"] == 1
    assert told["finetuned_webhook_oldest_pending_seconds"] >= 7200
    with database.transaction() as session:
        session.execute(delete(WebhookEndpoint))


def test_requests_count_by_their_routes_and_nothing_of_a_user_gets_into_a_label(
    api: Api, client: OpenAI, http: httpx2.Client, database: WorkerDatabase
) -> None:
    metadata = {CANARY: CANARY}
    job = make_job(client, f"{CANARY}.jsonl", suffix=CANARY, metadata=metadata)
    worker = Reporter(api.settings, database, job)
    worker.steps(1)
    with database.transaction() as session:
        store_key(session, make_key(), owner=CANARY, name=CANARY)
    http.get(f"/v1/files/{CANARY}")
    http.get(f"/v1/models/ft:tiny-gpt2:finetuned:{CANARY}:abc")
    http.get(f"/{CANARY}")
    http.get("/v1/files", params={"purpose": CANARY})
    http.request(CANARY, "/v1/files")
    http.get("/v1/files", headers={"authorization": f"Bearer {CANARY}"})
    http.post("/v1/completions", json={"model": CANARY, "prompt": CANARY})
    answer = http.get("/metrics").text
    assert CANARY not in answer
    assert job not in answer
    told = read(answer)
    counted = 'finetuned_http_requests_total{{method="{}",route="{}",status="{}"}}'
    assert told[counted.format("GET", "/v1/files/{file_id}", 404)] == 1
    assert told[counted.format("GET", "none", 404)] >= 1
    assert told[counted.format("GET", "none", 401)] >= 1
    assert told[counted.format("POST", "/v1/fine_tuning/jobs", 200)] >= 1
    assert any(key.startswith("finetuned_http_response_start_seconds_bucket") for key in told)
    worker.succeed()


def test_a_second_process_tells_the_same_of_the_jobs_and_its_own_of_its_requests(
    api: Api, scrape: Scrape
) -> None:
    with serving(api.settings) as other, api.http(url=other) as second:
        here, there = scrape(), read(second.get("/metrics").text)
    shared = {name for name in here if name.startswith(("finetuned_jobs{", "finetuned_stored"))}
    assert shared
    assert {name: here[name] for name in shared} == {name: there[name] for name in shared}
    assert not any("/v1/files" in name for name in there)
    loops = {name for name in there if name.startswith("finetuned_dispatcher_loop_age_seconds")}
    assert len(loops) == 6
    assert there["finetuned_broker_up"] == 1


async def lines(*said: Piece | Usage | Exception | None) -> AsyncGenerator[Piece | Usage | None]:
    for each in said:
        if isinstance(each, Exception):
            raise each
        yield each


async def test_generations_count_by_how_they_end() -> None:
    """The generator's words are the test's own here; tests/generation has the real one."""
    traffic = Traffic()
    piece = Piece(choice=0, text="a", logprobs=None, finish_reason=None)
    usage = Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
    streamed = Generation(source="s", name="n", stream=True)
    assert [x async for x in traffic.measure(streamed, lines(None, piece, usage))] == [None, piece, usage]
    async for _ in traffic.measure(Generation(source="s", name="n"), lines(piece, usage)):
        pass
    for refusal in (InvalidRequest("no"), TooMany("full"), ValueError("a fault of ours")):
        with pytest.raises(type(refusal)):
            [x async for x in traffic.measure(streamed, lines(refusal))]
    left = traffic.measure(streamed, lines(piece, usage))
    await anext(left)
    assert traffic.registry.get_sample_value("finetuned_generations_in_progress") == 1
    await left.aclose()

    def told(name: str, **labels: str) -> float | None:
        return traffic.registry.get_sample_value(f"finetuned_{name}", labels)

    for outcome, count in (("complete", 2), ("refused", 1), ("full", 1), ("failed", 1), ("left", 1)):
        assert told("generations_total", outcome=outcome) == count, outcome
    assert told("generation_tokens_total", kind="prompt") == 6
    assert told("generation_tokens_total", kind="completion") == 8
    assert told("generation_first_token_seconds_count") == 2, "the streamed ones that had a text"
    assert told("generation_seconds_count") == 2
    assert told("generations_in_progress") == 0


def test_a_generator_that_is_away_shows(scrape: Scrape, http: httpx2.Client) -> None:
    away = 'finetuned_generations_total{outcome="away"}'
    before = scrape()[away]
    assert http.post("/v1/completions", json={"model": "tiny-gpt2", "prompt": "a"}).status_code == 503
    assert scrape()[away] == before + 1
