"""Somebody else's thing cannot be told from one that never was: on every route, and inside every body."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from app.main import create_app
from app.settings import Settings
from tests.app.conftest import Api
from tests.security.conftest import Call, inventory
from tests.security.things import (
    UNKNOWN,
    Things,
    good,
    make_endpoint,
    make_job,
    make_model,
    make_things,
    make_upload,
)

CALLS = inventory(create_app(Settings(database_url="postgresql://x/y", redis_url="redis://x")))
NAMED = [call for call in CALLS if set(call.params) - {"path"}]
LISTS = [call for call in CALLS if call.method == "GET" and not call.params and call.path.startswith("/v1/")]
# What a body must hold to be looked at, where the path alone is not enough.
BODIES: dict[str, dict[str, Any]] = {
    "POST /v1/uploads/{upload_id}/parts": {"files": {"data": ("upload", b"x")}},
    "POST /v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint:path}/permissions": {
        "json": {"project_ids": ["stranger"]}
    },
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}": {"json": {"name": "mine"}},
    "POST /v1/webhook_endpoints/{webhook_endpoint_id}/test": {
        "json": {"event_type": "fine_tuning.job.failed"}
    },
    "POST /v1/api_keys/{key_id}": {"json": {"name": "mine"}},
    "POST /v1/uploads/{upload_id}/complete": {"json": {"part_ids": ["part_0"]}},
    "POST /v1/files/{file_id}/preview": {"json": {"model": "tiny-gpt2"}},
}
# For admins only, who see everybody's.
ADMINS = ("/v1/api_keys/{key_id}", "/v1/api_keys", "/v1/audit_log")


@pytest.fixture(scope="module")
def stranger(api: Api) -> Iterator[httpx2.Client]:
    with api.http(api.stranger_key) as client:
        yield client


@pytest.fixture(scope="module")
def theirs(api: Api) -> Things:
    with api.http() as owner:
        return make_things(owner, api.settings, api.settings.organization, "canaryword")


@pytest.fixture(scope="module")
def own_job(stranger: httpx2.Client) -> dict[str, Any]:
    return make_job(stranger)


@pytest.fixture(scope="module")
def own(api: Api, stranger: httpx2.Client, own_job: dict[str, Any]) -> dict[str, str]:
    """What the stranger has: parts of a path."""
    make_model(api.settings, "stranger", own_job["id"], "ft:own")
    return {
        "job": own_job["id"],
        "file": own_job["training_file"],
        "model": "ft:own",
        "endpoint": make_endpoint(stranger),
    }


def fill(call: Call, ids: dict[str, str]) -> str:
    missing = set(call.params) - set(ids)
    assert not missing, f"tests/security/things.py makes no {missing} yet: {call.name} needs one"
    return call.path.replace(":path}", "}").format(**{name: ids[name] for name in call.params})


def blurred(answer: httpx2.Response, ids: dict[str, str]) -> tuple[int, str]:
    """Status and body without the ids that were asked for."""
    text = answer.text
    for one in sorted(ids.values(), key=len, reverse=True):
        text = text.replace(one, "ID")
    return answer.status_code, text


@pytest.mark.parametrize("call", NAMED, ids=lambda call: call.name)
def test_another_owners_id_is_as_unknown_as_one_that_never_was(
    call: Call, stranger: httpx2.Client, theirs: Things
) -> None:
    nothing = {**UNKNOWN, "path": "config.json"}
    sent = BODIES.get(call.name, {})
    for kind in ("model", "checkpoint") if "model" in call.params else (None,):
        mine, none = ({**ids, "model": ids[kind]} if kind else ids for ids in (theirs.ids, nothing))
        found = stranger.request(call.method, fill(call, mine), **sent)
        unknown = stranger.request(call.method, fill(call, none), **sent)
        assert found.status_code == (403 if call.path in ADMINS else 404), found.text
        assert blurred(found, mine) == blurred(unknown, none)


@pytest.mark.parametrize("call", LISTS, ids=lambda call: call.name)
def test_no_list_shows_anything_of_another_owner(call: Call, stranger: httpx2.Client, theirs: Things) -> None:
    answer = stranger.get(call.path)
    if call.path in ADMINS:
        assert answer.status_code == 403
        return
    assert answer.status_code == 200, answer.text
    secrets = [theirs.word, *(value for name, value in theirs.ids.items() if name != "path")]
    assert [secret for secret in secrets if secret in answer.text] == []


@pytest.mark.parametrize(
    ("method", "path", "sent", "place", "kind"),
    [
        ("POST", "/v1/fine_tuning/jobs", {"model": "tiny-gpt2"}, "training_file", "file_id"),
        ("POST", "/v1/fine_tuning/jobs", {"model": "tiny-gpt2"}, "validation_file", "file_id"),
        ("POST", "/v1/fine_tuning/jobs", {}, "model", "model"),
        ("POST", "/v1/fine_tuning/jobs", {}, "model", "checkpoint"),
        ("POST", "/v1/fine_tuning/jobs", {"model": "tiny-gpt2"}, "from_checkpoint", "saved_step"),
        ("POST", "/v1/fine_tuning/jobs/preview", {"model": "tiny-gpt2"}, "training_file", "file_id"),
        ("POST", "/v1/files/{file}/preview", {}, "model", "model"),
        ("GET", "/v1/files/{file}/report", {}, "validation_file", "file_id"),
        ("GET", "/v1/files/{file}/report", {}, "model", "checkpoint"),
        ("POST", "/v1/completions", {"prompt": "x"}, "model", "model"),
        ("POST", "/v1/completions", {"prompt": "x"}, "model", "checkpoint"),
        ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "model", "model"),
        ("POST", "/v1/uploads/{upload}/complete", {}, "part_ids", "part_id"),
        ("GET", "/v1/files", {}, "after", "file_id"),
        ("GET", "/v1/fine_tuning/jobs", {}, "after", "job_id"),
        ("GET", "/v1/fine_tuning/jobs/{job}/events", {}, "after", "event_id"),
        ("GET", "/v1/fine_tuning/jobs/{job}/checkpoints", {}, "after", "checkpoint_id"),
        ("GET", "/v1/fine_tuning/jobs/{job}/events/stream", {}, "after", "event_id"),
        ("GET", "/v1/fine_tuning/checkpoints/{model}/permissions", {}, "after", "permission_id"),
        ("GET", "/v1/webhook_endpoints", {}, "after", "webhook_endpoint_id"),
        ("GET", "/v1/webhook_endpoints/{endpoint}/deliveries", {}, "after", "delivery_id"),
    ],
)
def test_nor_can_it_be_reached_through_a_reference(
    stranger: httpx2.Client,
    theirs: Things,
    own_job: dict[str, Any],
    own: dict[str, str],
    method: str,
    path: str,
    sent: dict[str, Any],
    place: str,
    kind: str,
) -> None:
    url = path.format(**own, upload=make_upload(stranger) if "{upload}" in path else "")
    body = {"training_file": own_job["training_file"], **sent} if path.endswith("jobs") else sent

    def ask(one: str) -> httpx2.Response:
        named = {**body, place: [one] if place == "part_ids" else one}
        return stranger.get(url, params=named) if method == "GET" else stranger.post(url, json=named)

    found, unknown = ask(theirs.ids[kind]), ask(UNKNOWN[kind])
    assert found.status_code in (400, 404), found.text
    # Paths differ where an upload is made for each; ids are blurred, so is nothing else.
    assert blurred(found, theirs.ids) == blurred(unknown, UNKNOWN)


def test_every_cursor_is_tried(theirs: Things) -> None:
    """A list that takes `after` and is not tried above would be a hole in this file."""
    document = create_app(Settings(database_url="postgresql://x/y", redis_url="redis://x")).openapi()
    tried = {"/v1/files", "/v1/fine_tuning/jobs", *ADMINS}
    tried |= {
        f"/v1/fine_tuning/jobs/{{job_id}}/{list_}"
        for list_ in ("events", "checkpoints", "metrics", "events/stream")
    }
    tried |= {
        "/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions",
        "/v1/webhook_endpoints",
        "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries",
    }
    found = {
        path
        for path, verbs in document["paths"].items()
        for parameter in verbs.get("get", {}).get("parameters", [])
        if parameter["name"] == "after"
    }
    assert found <= tried, "try its cursor in test_nor_can_it_be_reached_through_a_reference"


def test_an_idempotency_key_is_each_owners_own(
    api: Api, stranger: httpx2.Client, own_job: dict[str, Any]
) -> None:
    key = {"idempotency-key": "the same"}
    with api.http() as owner:
        first = make_job(owner)
        body = {"model": "tiny-gpt2", "training_file": first["training_file"]}
        mine = good(owner.post("/v1/fine_tuning/jobs", json=body, headers=key))
    body["training_file"] = own_job["training_file"]
    other = good(stranger.post("/v1/fine_tuning/jobs", json=body, headers=key))
    assert other["id"] != mine["id"]


def test_metadata_finds_only_ones_own(api: Api, stranger: httpx2.Client, theirs: Things) -> None:
    wanted = {"metadata[word]": theirs.word}
    assert good(stranger.get("/v1/fine_tuning/jobs", params=wanted))["data"] == []
    with api.http() as owner:
        assert len(good(owner.get("/v1/fine_tuning/jobs", params=wanted))["data"]) == 1


def test_after_all_that_everything_of_the_owner_is_as_it_was(api: Api, theirs: Things) -> None:
    with api.http() as owner:
        assert good(owner.get(f"/v1/files/{theirs.ids['file_id']}"))["status"] == "processed"
        assert good(owner.get(f"/v1/fine_tuning/jobs/{theirs.ids['job_id']}"))["status"] == "queued"
        assert good(owner.get(f"/v1/models/{theirs.ids['model']}"))["id"] == theirs.ids["model"]
        assert good(owner.get(f"/v1/uploads/{theirs.ids['upload_id']}"))["status"] == "pending"
        who = {entry["owner"] for entry in good(owner.get("/v1/audit_log", params={"limit": 1000}))["data"]}
        assert who == {"stranger", api.settings.organization}
        done = good(owner.get("/v1/audit_log?owner=stranger&limit=1000"))["data"]
    assert {entry["action"] for entry in done} == {
        "create_file",
        "create_job",
        "create_upload",
        "create_endpoint",
    }
