"""Every request that changes something leaves one line in the audit log, and nobody can take it out."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import psycopg
import pytest

from app.main import create_app
from app.settings import Settings
from tests.app.conftest import Api
from tests.app.receiver import Receiver, receiving
from tests.security.conftest import Call, inventory
from tests.security.things import (
    good,
    make_delivery,
    make_endpoint,
    make_file,
    make_job,
    make_model,
    make_part,
    make_permission,
    make_upload,
)

CALLS = inventory(create_app(Settings(database_url="postgresql://x/y", redis_url="redis://x")))
CHANGES = [call for call in CALLS if call.changes]
JOBS = "/v1/fine_tuning/jobs"


class Doer:
    """Knows for each call how to make it succeed. `prepare` is done before the log is read."""

    def __init__(self, http: httpx2.Client, api: Api, receiver: Receiver) -> None:
        self.http, self.api, self.receiver = http, api, receiver

    def job(self, verb: str, *before: str) -> Callable[[], httpx2.Response]:
        url = f"{JOBS}/{make_job(self.http)['id']}"
        for one in before:
            good(self.http.post(f"{url}/{one}"))
        return lambda: self.http.post(f"{url}/{verb}")

    def webhook(self, name: str) -> Callable[[], httpx2.Response]:
        method, path = name.split()
        body: Any = {"name": "x", "url": self.receiver.url, "event_types": ["fine_tuning.job.failed"]}
        if path.endswith("_id}"):
            body = {"name": "renamed"}
        elif not path.endswith("endpoints"):
            body = {"event_type": "fine_tuning.job.failed"} if path.endswith("/test") else {}
        endpoint = make_endpoint(self.http, url=self.receiver.url)
        delivery = make_delivery(self.api.settings, endpoint)
        url = path.format(webhook_endpoint_id=endpoint, delivery_id=delivery)
        return lambda: self.http.request(method, url, json=body if method == "POST" else None)

    def pin(self, method: str) -> Callable[[], httpx2.Response]:
        job_id = make_job(self.http)["id"]
        make_model(self.api.settings, self.api.settings.organization, job_id, f"ft:pinned:{job_id[-8:]}")
        url = f"{JOBS}/{job_id}/checkpoints/ftckpt_{job_id}/pin"
        return lambda: self.http.request(method, url)

    def model_name(self) -> str:
        job_id = make_job(self.http)["id"]
        name = f"ft:tiny-gpt2:finetuned::{job_id[-8:]}"
        make_model(self.api.settings, self.api.settings.organization, job_id, name)
        return name

    def model(self) -> Callable[[], httpx2.Response]:
        name = self.model_name()
        return lambda: self.http.delete(f"/v1/models/{name}")

    def upload(self, verb: str) -> Callable[[], httpx2.Response]:
        upload_id = make_upload(self.http)
        body = {"part_ids": [make_part(self.http, upload_id)]} if verb == "complete" else None
        return lambda: self.http.post(f"/v1/uploads/{upload_id}/{verb}", json=body)

    def part(self) -> Callable[[], httpx2.Response]:
        url = f"/v1/uploads/{make_upload(self.http)}/parts"
        return lambda: self.http.post(url, files={"data": ("upload", b"x")})

    def key(self) -> str:
        return str(good(self.http.post("/v1/api_keys", json={"name": "spare"}))["id"])

    def own_key(self) -> Callable[[], httpx2.Response]:
        made = good(self.http.post("/v1/api_keys", json={"name": "spare"}))
        headers = {"authorization": f"Bearer {made['value']}"}
        return lambda: self.http.delete("/v1/api_keys/me", headers=headers)

    def prepare(self, name: str) -> Callable[[], httpx2.Response]:
        http = self.http
        match name:
            case "POST /v1/api_keys":
                return lambda: http.post("/v1/api_keys", json={"name": "spare"})
            case "DELETE /v1/api_keys/me":
                return self.own_key()
            case "POST /v1/api_keys/{key_id}":
                key_id = self.key()
                return lambda: http.post(f"/v1/api_keys/{key_id}", json={"name": "renamed"})
            case "DELETE /v1/api_keys/{key_id}":
                key_id = self.key()
                return lambda: http.delete(f"/v1/api_keys/{key_id}")
            case "POST /v1/files":
                form: dict[str, Any] = {"data": {"purpose": "fine-tune"}, "files": {"file": ("x", b"{}")}}
                return lambda: http.post("/v1/files", **form)
            case "DELETE /v1/files/{file_id}":
                file_id = make_file(http)
                return lambda: http.delete(f"/v1/files/{file_id}")
            case "POST /v1/download_tickets":
                wanted = {"path": f"/v1/files/{make_file(http)}/content"}
                return lambda: http.post("/v1/download_tickets", json=wanted)
            case "POST /v1/fine_tuning/jobs":
                body = {"model": "tiny-gpt2", "training_file": make_file(http)}
                return lambda: http.post(JOBS, json=body)
            case "POST /v1/fine_tuning/jobs/{job_id}/cancel":
                return self.job("cancel")
            case "POST /v1/fine_tuning/jobs/{job_id}/pause":
                return self.job("pause")
            case "POST /v1/fine_tuning/jobs/{job_id}/resume":
                return self.job("resume", "pause")
            case _ if name.endswith("/checkpoints/{checkpoint_id}/pin"):
                return self.pin(name.split()[0])
            case "DELETE /v1/models/{model:path}":
                return self.model()
            case "POST /v1/uploads":
                upload = {"bytes": 1, "filename": "x", "mime_type": "a/b", "purpose": "fine-tune"}
                return lambda: http.post("/v1/uploads", json=upload)
            case "POST /v1/uploads/{upload_id}/parts":
                return self.part()
            case "POST /v1/uploads/{upload_id}/complete":
                return self.upload("complete")
            case "POST /v1/uploads/{upload_id}/cancel":
                return self.upload("cancel")
            case "POST /v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint:path}/permissions":
                url = f"/v1/fine_tuning/checkpoints/{self.model_name()}/permissions"
                return lambda: http.post(url, json={"project_ids": ["a"]})
            case (
                "DELETE /v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint:path}"
                "/permissions/{permission_id}"
            ):
                model = self.model_name()
                url = f"/v1/fine_tuning/checkpoints/{model}/permissions/{make_permission(http, model)}"
                return lambda: http.delete(url)
            case _ if "/v1/webhook_endpoints" in name:
                return self.webhook(name)
        raise NotImplementedError(f"teach tests/security/test_audit.py how to make {name} succeed")


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def log(http: httpx2.Client) -> list[dict[str, Any]]:
    """Newest first."""
    return list(good(http.get("/v1/audit_log", params={"limit": 1000}))["data"])


@pytest.mark.parametrize("call", CHANGES, ids=lambda call: call.name)
def test_what_changes_something_is_written_down_once(
    call: Call, http: httpx2.Client, api: Api, receiver: Receiver
) -> None:
    do = Doer(http, api, receiver).prepare(call.name)
    before = log(http)
    answer = do()
    made = good(answer)
    after = log(http)
    assert after[1:] == before, "one line, and no other was touched"
    line = after[0]
    me = good(http.get("/v1/api_keys/me"))["id"]
    assert line["key_id"] == (made["id"] if call.path.endswith("/me") else me)
    assert line["owner"] == api.settings.organization
    assert line["action"] == call.action
    # A list of permissions has no id, and a test that was sent only its endpoint's.
    assert line["target"].endswith(made.get("id", made.get("webhook_endpoint_id", "")))
    assert line["target"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert api.key not in str(line)


def test_what_is_refused_or_changes_nothing_is_not_written_down(http: httpx2.Client) -> None:
    job = make_job(http)
    good(http.post(f"{JOBS}/{job['id']}/cancel"))
    body = {"model": "tiny-gpt2", "training_file": job["training_file"]}
    good(http.post(JOBS, json=body, headers={"idempotency-key": "audited"}))
    before = log(http)
    good(http.post(JOBS, json=body, headers={"idempotency-key": "audited"}))
    good(http.post(f"{JOBS}/{job['id']}/cancel", headers={"x-stainless-retry-count": "1"}))
    assert http.post(f"{JOBS}/{job['id']}/cancel").status_code == 400
    assert http.delete("/v1/files/file-0").status_code == 404
    assert http.post("/v1/completions", json={"model": "nothing", "prompt": "x"}).status_code == 404
    assert log(http) == before


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_log SET owner = 'x'", "DELETE FROM audit_log", "TRUNCATE audit_log"],
)
def test_the_database_keeps_every_line(sql: psycopg.Connection, http: httpx2.Client, statement: str) -> None:
    make_file(http)
    before = log(http)
    with pytest.raises(psycopg.errors.CheckViolation, match="only ever added to"):
        sql.execute(statement)
    assert log(http) == before


def test_the_log_is_paged_and_filtered(http: httpx2.Client) -> None:
    for _ in range(3):
        make_file(http)
    page = good(http.get("/v1/audit_log", params={"action": "create_file", "limit": 2}))
    assert (len(page["data"]), page["has_more"]) == (2, True)
    rest = good(http.get("/v1/audit_log", params={"action": "create_file", "after": page["last_id"]}))
    assert {line["action"] for line in rest["data"]} == {"create_file"}
    assert not {line["id"] for line in rest["data"]} & {line["id"] for line in page["data"]}
    assert good(http.get("/v1/audit_log", params={"owner": "nobody"}))["data"] == []
