"""Webhook endpoints as the official SDK uses them, and jobs whose ends arrive."""

import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from openai.types.webhooks import (
    DeletedWebhookEndpoint,
    WebhookEndpoint,
    WebhookEndpointTestResult,
    WebhookEndpointWithSecret,
    WebhookEventTypeList,
)
from pydantic import BaseModel

from app.database import WorkerDatabase
from app.lifecycle import claims
from app.lifecycle.claims import JobError
from app.webhooks.event import TYPES
from tests.app.conftest import Api
from tests.app.receiver import Receiver, receiving

URL = "https://hooks.example/finetuned"
ENDPOINTS = "/v1/webhook_endpoints"
ENDINGS = ("succeeded", "failed", "cancelled")


@pytest.fixture(scope="module")
def more_settings() -> dict[str, Any]:
    return {
        "webhook_allow": (ip_network("127.0.0.0/8"),),
        "webhook_retries": (timedelta(milliseconds=1),),
        "webhook_timeout": timedelta(seconds=2),
    }


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def strictly(shape: type[BaseModel], answer: Any) -> Any:
    """The answer, which must be what the SDK's class says to the letter."""
    return shape.model_validate_json(answer.http_response.content, strict=True)


def make(client: OpenAI, url: str = URL, name: str = "ci", kinds: Any = TYPES) -> Any:
    made = client.webhooks.with_raw_response.create(name=name, url=url, event_types=list(kinds))
    return strictly(WebhookEndpointWithSecret, made)


def end_job(api: Api, client: OpenAI, rows: Path, ending: str) -> str:
    """A job that a worker ends, or that is cancelled before any came."""
    file = client.files.create(file=rows, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file.id)
    if ending == "cancelled":
        client.fine_tuning.jobs.cancel(job.id)
        return job.id
    database = WorkerDatabase(api.settings)
    with database.transaction() as session:
        held = claims.claim(session, job.id, "worker", timedelta(seconds=60))
        assert held is not None
        if ending == "succeeded":
            claims.succeed(session, held, f"ft:{job.id}", 1)
        else:
            claims.fail(session, held, JobError("trainer_failed", "It failed."))
    database.close()
    return job.id


def test_an_endpoints_life(client: OpenAI) -> None:
    made = make(client)
    assert made.signing_secret.startswith("whsec_")
    assert made.signing_secret_hint == f"whsec_...{made.signing_secret.rstrip('=')[-4:]}"
    assert (made.name, made.url, made.event_types, made.created_at) == (
        "ci",
        URL,
        list(TYPES),
        made.updated_at,
    )
    raw = client.webhooks.with_raw_response
    found = strictly(WebhookEndpoint, raw.retrieve(made.id))
    assert not hasattr(found, "signing_secret")
    assert found.model_dump().items() <= {**made.model_dump(), "disabled": False}.items()
    renamed = strictly(WebhookEndpoint, raw.update(made.id, name="nightly"))
    assert (renamed.name, renamed.url, renamed.event_types) == ("nightly", URL, list(TYPES))
    fewer = client.webhooks.update(made.id, url=URL + "/2", event_types=[TYPES[1], TYPES[1]])
    assert (fewer.name, fewer.url, fewer.event_types) == ("nightly", URL + "/2", [TYPES[1]])
    assert client.webhooks.update(made.id).updated_at == fewer.updated_at
    gone = strictly(DeletedWebhookEndpoint, raw.delete(made.id))
    assert (gone.id, gone.deleted) == (made.id, True)
    for call in (client.webhooks.retrieve, client.webhooks.update, client.webhooks.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)


def test_the_list_pages_from_the_newest(client: OpenAI) -> None:
    made = [make(client, name=f"page {number}").id for number in range(5)]
    listed = [row.id for row in client.webhooks.list(limit=2)]
    assert listed[:5] == made[::-1]
    assert len(set(listed)) == len(listed)
    assert strictly(WebhookEventTypeList, client.webhooks.event_types.with_raw_response.list()).data == list(
        TYPES
    )
    for each in made:
        client.webhooks.delete(each)


def test_a_stranger_finds_nothing(api: Api, client: OpenAI) -> None:
    made = make(client)
    with api.client(api.stranger_key) as stranger, api.http(api.stranger_key) as http:
        assert list(stranger.webhooks.list()) == []
        calls: list[Any] = [
            stranger.webhooks.retrieve,
            stranger.webhooks.update,
            stranger.webhooks.delete,
            stranger.webhooks.rotate_secret,
            lambda one: stranger.webhooks.test(one, event_type=TYPES[0]),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                call(made.id)
        assert http.get(f"{ENDPOINTS}/{made.id}/deliveries").status_code == 404
        assert http.get(ENDPOINTS, params={"after": made.id}).status_code == 404
    assert client.webhooks.retrieve(made.id).name == "ci"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": "", "url": URL, "event_types": [TYPES[0]]}, "name"),
        ({"name": "a", "url": URL, "event_types": []}, "event_types"),
        ({"name": "a", "url": URL, "event_types": ["batch.completed"]}, "event_types.0"),
        ({"name": "a", "url": URL}, "event_types"),
        ({"name": "a", "event_types": [TYPES[0]]}, "url"),
        ({"name": "a", "url": "http://10.0.0.1/", "event_types": [TYPES[0]]}, "url"),
        ({"name": "a", "url": "https://me@hooks.example", "event_types": [TYPES[0]]}, "url"),
        ({"name": "a", "url": URL, "event_types": [TYPES[0]], "secret": "x"}, "secret"),
    ],
)
def test_a_bad_endpoint_is_refused_by_its_field(
    http: httpx2.Client, client: OpenAI, body: dict[str, Any], param: str
) -> None:
    answer = http.post(ENDPOINTS, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    made = make(client)
    if param != "secret" and param in body:
        answer = http.post(f"{ENDPOINTS}/{made.id}", json={param: body[param]})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    client.webhooks.delete(made.id)


def test_the_sdks_silent_retry_makes_no_second_endpoint_and_loses_no_secret(http: httpx2.Client) -> None:
    again = {"x-stainless-retry-count": "1"}
    body = {"name": "retried", "url": URL, "event_types": [TYPES[0]]}
    first = http.post(ENDPOINTS, json=body).json()
    assert http.post(ENDPOINTS, json=body, headers=again).json() == first
    assert http.post(ENDPOINTS, json={**body, "name": "other"}, headers=again).json()["id"] != first["id"]
    one = f"{ENDPOINTS}/{first['id']}"
    # A rotation's own first try, a moment after the endpoint was made, is no repetition.
    rotated = http.post(f"{one}/rotate_secret", json={"keep_old_secret_active_for_24_hours": True}).json()
    assert rotated["signing_secret"] != first["signing_secret"]
    retried = http.post(f"{one}/rotate_secret", json={}, headers=again).json()
    assert retried["signing_secret"] == rotated["signing_secret"]


def test_there_is_a_limit_to_endpoints(client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.routes.webhooks.MAX_ENDPOINTS", len(list(client.webhooks.list())) + 1)
    made = make(client)
    with pytest.raises(openai.BadRequestError, match="delete one") as refused:
        make(client)
    assert refused.value.code == "too_many_endpoints"
    client.webhooks.delete(made.id)
    client.webhooks.delete(make(client).id)


def test_a_test_event_tells_what_the_receiver_answers(client: OpenAI, receiver: Receiver) -> None:
    made = make(client, f"{receiver.url}/test")
    receiver.answers["/test"].extend([200, 418])
    for status, kind in ((200, TYPES[0]), (418, TYPES[2])):
        raw = client.webhooks.with_raw_response.test(made.id, event_type=kind)
        result = strictly(WebhookEndpointTestResult, raw)
        assert (result.status_code, result.event_type, result.webhook_endpoint_id) == (status, kind, made.id)
        received = receiver.of("/test")[-1]
        read = client.webhooks.unwrap(received.body, received.headers, secret=made.signing_secret)
        assert read.type == kind
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/", "https://localhost/"):
        client.webhooks.update(made.id, url=url)
        with pytest.raises(openai.BadRequestError) as refused:
            client.webhooks.test(made.id, event_type=TYPES[0])
        assert refused.value.code == "webhook_unreachable"
    client.webhooks.delete(made.id)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_end_of_a_job_arrives(
    api: Api, client: OpenAI, receiver: Receiver, rows: Path, ending: str
) -> None:
    made = make(client, f"{receiver.url}/{ending}", kinds=[f"fine_tuning.job.{ending}"])
    others = make(client, f"{receiver.url}/not-{ending}", kinds=set(TYPES) - {f"fine_tuning.job.{ending}"})
    job_id = end_job(api, client, rows, ending)
    (received,) = receiver.wait(f"/{ending}", 1)
    read: Any = client.webhooks.unwrap(received.body, received.headers, secret=made.signing_secret)
    assert (read.type, read.data.id) == (f"fine_tuning.job.{ending}", job_id)
    assert read.created_at == client.fine_tuning.jobs.retrieve(job_id).finished_at
    assert type(read).__name__ == f"FineTuningJob{ending.capitalize()}WebhookEvent"
    assert receiver.of(f"/not-{ending}") == []
    for each in (made, others):
        client.webhooks.delete(each.id)


def test_the_log_shows_each_attempt_and_redelivery_sends_the_same_again(
    api: Api, client: OpenAI, http: httpx2.Client, receiver: Receiver, rows: Path
) -> None:
    made = make(client, f"{receiver.url}/logged")
    receiver.answers["/logged"].extend([500, 503, 200])
    job_id = end_job(api, client, rows, "cancelled")
    log = f"{ENDPOINTS}/{made.id}/deliveries"
    receiver.wait("/logged", 2)
    delivery = until(http, log, "failed")
    assert delivery["event"]["data"] == {"id": job_id}
    assert [(line["attempt"], line["status_code"]) for line in delivery["log"]] == [(1, 500), (2, 503)]
    assert (delivery["attempts"], delivery["next_attempt_at"]) == (2, None)
    one = f"{log}/{delivery['id']}"
    assert http.get(one).json() == delivery
    again = http.post(f"{one}/redeliver").json()
    assert (again["status"], again["ended_at"]) == ("pending", None)
    received = receiver.wait("/logged", 3)
    assert {each.id for each in received} == {delivery["event"]["id"]}
    assert len({each.body for each in received}) == 1
    assert until(http, log, "delivered")["attempts"] == 3
    assert http.get(log, params={"status": "failed"}).json()["data"] == []
    for missing in (f"{log}/whd_0", f"{log}/whd_0/redeliver"):
        answer = http.request("POST" if "redeliver" in missing else "GET", missing)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "webhook_delivery_not_found")
    client.webhooks.delete(made.id)
    assert http.post(f"{one}/redeliver").status_code == 404


def until(http: httpx2.Client, log: str, status: str) -> Any:
    """The only delivery, once it is that."""
    for _ in range(600):
        (delivery,) = http.get(log).json()["data"]
        if delivery["status"] == status:
            return delivery
        threading.Event().wait(0.05)
    raise AssertionError(delivery)


def test_an_endpoint_that_answers_410_is_enabled_by_its_url(
    api: Api, client: OpenAI, http: httpx2.Client, receiver: Receiver, rows: Path
) -> None:
    made = make(client, f"{receiver.url}/gone")
    receiver.answers["/gone"].append(410)
    end_job(api, client, rows, "cancelled")
    log = f"{ENDPOINTS}/{made.id}/deliveries"
    delivery = until(http, log, "failed")
    assert client.webhooks.retrieve(made.id).model_extra == {"disabled": True}
    refused = http.post(f"{log}/{delivery['id']}/redeliver")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "webhook_endpoint_disabled")
    assert client.webhooks.update(made.id, name="still off").model_extra == {"disabled": True}
    assert client.webhooks.update(made.id, url=made.url).model_extra == {"disabled": False}
    assert http.post(f"{log}/{delivery['id']}/redeliver").status_code == 200
    until(http, log, "delivered")
    client.webhooks.delete(made.id)


@pytest.mark.parametrize("keep", [True, False])
def test_a_new_secret_signs_and_the_old_one_as_long_as_was_asked(
    client: OpenAI, receiver: Receiver, keep: bool
) -> None:
    path = f"/rotated-{keep}"
    made = make(client, receiver.url + path)
    raw = client.webhooks.with_raw_response.rotate_secret(made.id, keep_old_secret_active_for_24_hours=keep)
    rotated = strictly(WebhookEndpointWithSecret, raw)
    assert rotated.signing_secret != made.signing_secret
    assert rotated.signing_secret_hint == client.webhooks.retrieve(made.id).signing_secret_hint
    client.webhooks.test(made.id, event_type=TYPES[0])
    (received,) = receiver.of(path)
    client.webhooks.unwrap(received.body, received.headers, secret=rotated.signing_secret)
    if keep:
        client.webhooks.unwrap(received.body, received.headers, secret=made.signing_secret)
    else:
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(received.body, received.headers, secret=made.signing_secret)
    client.webhooks.delete(made.id)
