"""Every list of the API, the same questions: a total order within one second, cursors, an end."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import select, text, update

from app.database import WorkerDatabase
from app.keyring import ApiKey, AuditEntry
from app.main import create_app
from app.permissions import CheckpointPermission
from app.recipe import Recipe
from app.settings import Settings
from app.tables import Checkpoint, Event, File, Job, Model, now
from app.webhooks.rows import WebhookDelivery, WebhookEndpoint
from tests.app.conftest import Api

COUNT = 7
JOB = "ftjob-p0"
MODEL = "ft:paged"
# The list's URL, and its table. Metrics, attempts and the stream are no such lists: they go by numbers.
LISTS: dict[str, tuple[str, Any]] = {
    "/v1/files": ("/v1/files", File),
    "/v1/fine_tuning/jobs": ("/v1/fine_tuning/jobs", Job),
    "/v1/fine_tuning/jobs/{job_id}/events": (f"/v1/fine_tuning/jobs/{JOB}/events", Event),
    "/v1/fine_tuning/jobs/{job_id}/checkpoints": (f"/v1/fine_tuning/jobs/{JOB}/checkpoints", Checkpoint),
    "/v1/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions": (
        f"/v1/fine_tuning/checkpoints/{MODEL}/permissions",
        CheckpointPermission,
    ),
    "/v1/webhook_endpoints": ("/v1/webhook_endpoints", WebhookEndpoint),
    "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries": (
        "/v1/webhook_endpoints/we_p0/deliveries",
        WebhookDelivery,
    ),
    "/v1/api_keys": ("/v1/api_keys", ApiKey),
    "/v1/audit_log": ("/v1/audit_log", AuditEntry),
}
FOR_ADMINS = ("/v1/api_keys", "/v1/audit_log")
NOT_PAGED = {f"/v1/fine_tuning/jobs/{{job_id}}/{name}" for name in ("metrics", "attempts", "events/stream")}


@pytest.fixture(scope="module")
def ids(api: Api) -> Iterator[dict[Any, list[str]]]:
    """Rows of each list, oldest first, all made in one and the same microsecond."""
    database = WorkerDatabase(api.settings)
    made: dict[Any, list[Any]] = {table: [] for _, table in LISTS.values()}
    numbers = range(COUNT)
    job: dict[str, Any] = {"model": "tiny-gpt2", "source": "builtin:tiny-gpt2", "training_file": "file-p0"}
    job |= {"seed": 1, "method": {"type": "supervised"}, "hyperparameters": {}}
    job["recipe"] = Recipe().model_dump(mode="json")
    file = {"bytes": 1, "sha256": "", "filename": "f", "format": "jsonl", "status": "processed", "rows": 1}
    endpoint: dict[str, Any] = {"name": "n", "url": "https://a.example", "event_types": []}
    delivery = {"event_type": "fine_tuning.job.failed", "body": "{}", "status": "failed"}
    saved: dict[str, Any] = {"epoch": 1, "key": "jobs/x", "manifest_sha256": "", "bytes": 1, "metrics": {}}
    owner = api.settings.organization
    at = datetime(2026, 11, 1, 12, tzinfo=UTC)
    for n in numbers:
        # Ids in no order: it is not by them that pages are cut.
        shuffled = (n * 3) % COUNT
        made[File].append(File(id=f"file-p{shuffled}", owner=owner, purpose="fine-tune", **file))
        made[Job].append(Job(id=f"ftjob-p{shuffled}", owner=owner, request_sha256="", max_attempts=1, **job))
        made[Event].append(Event(id=f"e{shuffled}", job_id=JOB, level="info", code="c", message="m"))
        made[Checkpoint].append(
            Checkpoint(id=f"c{shuffled}", job_id=JOB, step=shuffled, name=f"{JOB}:{n}", **saved)
        )
        made[CheckpointPermission].append(
            CheckpointPermission(id=f"cp_{shuffled}", owner=owner, model_name=MODEL, project_id=f"p{n}")
        )
        made[WebhookEndpoint].append(
            WebhookEndpoint(id=f"we_p{shuffled}", owner=owner, secret_salt="", secret_hint="", **endpoint)
        )
        made[WebhookDelivery].append(
            WebhookDelivery(
                id=f"whd_{shuffled}",
                endpoint_id="we_p0",
                event_id=f"evt_{n}",
                ended_at=text("clock_timestamp()"),
                **delivery,
            )
        )
        made[ApiKey].append(ApiKey(id=f"key-{shuffled}", owner=owner, name="n", secret_sha256="", scopes=[]))
        entry = {"key_id": "k", "owner": owner, "action": "a", "target": "t", "request_id": "r"}
        made[AuditEntry].append(AuditEntry(id=f"audit-{shuffled}", **entry))
    model: dict[str, Any] = {"base": "b", "key": "models/m", "manifest": {}, "bytes": 1}
    with database.transaction() as session:
        session.add(Model(id="model-p", owner=owner, name=MODEL, **model))
        for rows in made.values():
            for row in rows:
                row.created_at = at
                session.add(row)
                session.flush()
        # Whatever was there before: the keys that ask.
        found = {table: list(session.scalars(select(table.id).order_by(table.seq))) for table in made}
    yield found
    database.close()


def test_every_list_with_a_cursor_is_asked_here() -> None:
    paths = create_app(Settings(database_url="postgresql://x/y", redis_url="redis://x")).openapi()["paths"]
    with_cursor = {
        path
        for path, verbs in paths.items()
        if "after" in {parameter["name"] for parameter in verbs.get("get", {}).get("parameters", [])}
    }
    assert with_cursor - NOT_PAGED == set(LISTS)


@pytest.mark.parametrize(("url", "table"), LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("limit", [1, 2, COUNT - 1, COUNT, COUNT + 1])
def test_pages_hold_everything_once_from_the_newest(
    http: httpx2.Client, ids: dict[Any, list[str]], url: str, table: Any, limit: int
) -> None:
    seen: list[str] = []
    everything = ids[table][::-1]
    for _ in everything:
        query: dict[str, str | int] = {"limit": limit, **({"after": seen[-1]} if seen else {})}
        page = http.get(url, params=query).json()
        listed = [item["id"] for item in page["data"]]
        assert (page["object"], page["first_id"], page["last_id"]) == ("list", listed[0], listed[-1])
        assert len(listed) == min(limit, len(everything) - len(seen))
        seen += listed
        assert page["has_more"] is (len(seen) < len(everything))
        if not page["has_more"]:
            break
    assert seen == everything
    assert http.get(url, params={"after": seen[-1]}).json() == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }


@pytest.mark.usefixtures("ids")
def test_whoever_deletes_what_they_list_loses_nothing(client: OpenAI) -> None:
    rows = ("wiped.jsonl", b'{"prompt": "a", "completion": "b"}\n')
    made = [client.files.create(file=rows, purpose="user_data").id for _ in range(5)]
    for file in client.files.list(purpose="user_data", limit=2):
        client.files.delete(file.id)
        made.remove(file.id)
    assert not made

    hooks = client.webhooks
    kinds: Any = ["fine_tuning.job.failed"]
    ids = [hooks.create(name="n", url="https://a.example", event_types=kinds).id for _ in range(3)]
    for endpoint in hooks.list(limit=1):
        if endpoint.id in ids:
            hooks.delete(endpoint.id)
            ids.remove(endpoint.id)
    assert not ids

    permissions = client.fine_tuning.checkpoints.permissions
    teams = {f"team-{n}" for n in range(5)}
    permissions.create(MODEL, project_ids=sorted(teams))
    for permission in permissions.list(MODEL, limit=2):
        if permission.project_id in teams:
            permissions.delete(permission.id, fine_tuned_model_checkpoint=MODEL)
            teams.remove(permission.project_id)
    assert not teams


def test_a_checkpoint_that_was_retired_meanwhile_is_a_cursor_still(
    http: httpx2.Client, api: Api, ids: dict[Any, list[str]]
) -> None:
    url, newest_first = f"/v1/fine_tuning/jobs/{JOB}/checkpoints", ids[Checkpoint][::-1]
    database = WorkerDatabase(api.settings)

    def mark(value: Any) -> None:
        with database.transaction() as session:
            session.execute(
                update(Checkpoint).where(Checkpoint.id == newest_first[1]).values(deleted_at=value)
            )

    mark(now)
    try:
        page = http.get(url, params={"after": newest_first[1], "limit": 2}).json()
    finally:
        mark(None)
        database.close()
    assert [row["id"] for row in page["data"]] == newest_first[2:4]


@pytest.mark.usefixtures("ids")
@pytest.mark.parametrize("url", [url for url, _ in LISTS.values()], ids=LISTS)
def test_a_cursor_that_names_nothing_of_the_list_is_404_and_a_limit_out_of_range_400(
    http: httpx2.Client, url: str
) -> None:
    for after in ("unknown", "", "ftjob-p", "whd_", "file-p0" if url != "/v1/files" else "e0"):
        answer = http.get(url, params={"after": after})
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "after"), after
    for limit in (0, -1, 10**9, "x"):
        answer = http.get(url, params={"limit": limit})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit"), limit


@pytest.mark.usefixtures("ids")
@pytest.mark.parametrize("url", [url for url, _ in LISTS.values()], ids=LISTS)
def test_another_owners_rows_are_no_cursor(api: Api, url: str, ids: dict[Any, list[str]]) -> None:
    with api.http(api.stranger_key) as stranger:
        for rows in ids.values():
            answer = stranger.get(url, params={"after": rows[0]})
            assert answer.status_code == (403 if url in FOR_ADMINS else 404)


def test_orders_that_can_be_asked_for(http: httpx2.Client, ids: dict[Any, list[str]]) -> None:
    for url, order, table in (
        ("/v1/files", "asc", File),
        (f"/v1/fine_tuning/checkpoints/{MODEL}/permissions", "ascending", CheckpointPermission),
    ):
        first = http.get(url, params={"order": order, "limit": 3}).json()
        rest = http.get(url, params={"order": order, "after": first["last_id"]}).json()
        assert [item["id"] for item in first["data"] + rest["data"]] == ids[table]
        assert http.get(url, params={"order": "sideways"}).status_code == 400
