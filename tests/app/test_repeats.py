"""The same request again: by its key, by the SDK's own count of tries, in order and all at once."""

import threading
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture
def body(client: OpenAI, rows: Path) -> dict[str, Any]:
    return {"model": "tiny-gpt2", "training_file": client.files.create(file=rows, purpose="fine-tune").id}


def create(http: httpx2.Client, body: dict[str, Any], tries: int = 0, **headers: str) -> dict[str, Any]:
    answer = http.post(JOBS, json=body, headers={"x-stainless-retry-count": str(tries), **headers})
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


def test_the_sdks_silent_retry_finds_the_job_of_the_first_try(
    http: httpx2.Client, body: dict[str, Any]
) -> None:
    first = create(http, body)
    assert create(http, body, tries=1)["id"] == first["id"]
    assert create(http, body, tries=2)["id"] == first["id"]
    assert create(http, body)["id"] != first["id"], "asked for anew it is another job"
    assert create(http, {**body, "suffix": "b"}, tries=1)["id"] != first["id"]


def test_a_retry_whose_first_try_never_arrived_makes_the_job(
    http: httpx2.Client, body: dict[str, Any]
) -> None:
    assert create(http, body, tries=1)["status"] == "queued"


def test_a_retry_does_not_find_what_was_cancelled_or_somebody_elses(
    http: httpx2.Client, body: dict[str, Any], client: OpenAI
) -> None:
    first = create(http, body)
    client.fine_tuning.jobs.cancel(first["id"])
    assert create(http, body, tries=1)["id"] != first["id"]


def test_tries_that_arrive_all_at_once_make_one_job(http: httpx2.Client, body: dict[str, Any]) -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda tries=tries: made.append(create(http, body, tries)["id"]))
        for tries in (0, 1, 2, 3, 4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The first try may come last: then it is the only one that made another.
    assert len(made) == 5
    assert len(set(made)) <= 2
    retried = create(http, body, tries=9)
    assert retried["id"] in made


def test_a_key_answers_with_its_job_even_when_nothing_of_it_could_be_made_any_more(
    http: httpx2.Client, body: dict[str, Any], client: OpenAI
) -> None:
    first = create(http, body, 0, **{"idempotency-key": "k1"})
    client.fine_tuning.jobs.cancel(first["id"])
    client.files.delete(body["training_file"])
    again = create(http, body, 0, **{"idempotency-key": "k1"})
    assert (again["id"], again["status"]) == (first["id"], "cancelled")


@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_a_repeated_wish_that_is_granted_already_is_no_error(
    http: httpx2.Client, body: dict[str, Any], verb: str
) -> None:
    job_id = create(http, body)["id"]
    url, retry = f"{JOBS}/{job_id}/{verb}", {"x-stainless-retry-count": "1"}
    assert http.post(url).status_code == 200
    assert http.post(url).status_code == 400
    assert http.post(url, headers=retry).status_code == 200
    if verb == "pause":
        assert http.post(f"{JOBS}/{job_id}/resume").status_code == 200
        assert http.post(f"{JOBS}/{job_id}/resume", headers=retry).json()["status"] == "queued"
    else:
        assert http.post(f"{JOBS}/{job_id}/pause", headers=retry).status_code == 400


def test_the_real_sdk_sends_what_this_rests_on(body: dict[str, Any], client: OpenAI) -> None:
    seen: list[str | None] = []

    def refuse(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers.get("x-stainless-retry-count"))
        return httpx2.Response(503, headers={"retry-after-ms": "1"})

    transport = httpx2.MockTransport(refuse)
    with (
        OpenAI(
            base_url=client.base_url,
            api_key="k",
            max_retries=2,
            http_client=httpx2.Client(transport=transport),
        ) as sdk,
        pytest.raises(openai.InternalServerError),
    ):
        sdk.fine_tuning.jobs.create(**body)
    assert seen == ["0", "1", "2"]
