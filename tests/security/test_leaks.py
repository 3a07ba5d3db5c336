"""What users send stays where it belongs: no key in dumps or logs, no value back in a refusal."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
import redis

from app.apikey import make_key
from app.auth import ALL_SCOPES, ensure_first_key, store_key
from app.database import WorkerDatabase
from app.main import create_app
from app.settings import Settings
from tests.security.served import serve
from tests.security.things import good, make_job

CANARY = "Xq7!canary!valueZ"  # no label may hold a "!"
JSON = {"content-type": "application/json"}
# A refusal that has to name what was not found, as OpenAI's do: an id, or a model's name.
NAMING = {
    "model_not_found",
    "file_not_found",
    "job_not_found",
    "upload_not_found",
    "api_key_not_found",
    "part_not_found",
    "invalid_training_file",
    "invalid_validation_file",
    "permission_not_found",
    "webhook_endpoint_not_found",
    "webhook_delivery_not_found",
    "not_found",
}


@dataclass
class Service:
    """A running API: what it was told, and where it may have written it."""

    settings: Settings
    log: Path
    key: str
    other_key: str
    url: str
    answers: list[httpx2.Response] = field(default_factory=list)

    def database(self) -> str:
        """Every row of every table, as text."""
        assert self.settings.database_url is not None
        url = self.settings.database_url.get_secret_value().replace("+psycopg", "")
        with psycopg.connect(url) as connection:
            tables = connection.execute(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
            ).fetchall()
            assert len(tables) > 8
            rows = [
                row[0]
                for (table,) in tables
                for row in connection.execute(f'SELECT to_jsonb(t)::text FROM "{table}" t').fetchall()  # noqa: S608
            ]
        return "\n".join(rows)

    def redis(self) -> str:
        assert self.settings.redis_url is not None
        with redis.Redis.from_url(self.settings.redis_url.get_secret_value()) as client:
            kept = [client.dump(key) or b"" for key in client.scan_iter()]
        return b"\n".join(kept).decode("latin-1")


@pytest.fixture(scope="module")
def service(
    module_database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home, database_url=module_database_url, redis_url=redis_url)
    key, other = ensure_first_key(settings).read_text().strip(), make_key()
    database = WorkerDatabase(settings)
    with database.transaction() as session:
        store_key(session, other, owner="other", name="other", scopes=ALL_SCOPES)
    database.close()
    with serve(settings, home / "log") as url:
        service = Service(settings, home / "log", key, other, url)
        with httpx2.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30) as http:
            talk(service, http)
        yield service


def talk(service: Service, http: httpx2.Client) -> None:
    """Everything that may go wrong, with the canary in every place."""
    document = create_app(service.settings).openapi()
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            url = path.replace("{", "").replace("}", "")
            if (verb, path) == ("delete", "/v1/api_keys/me"):
                continue  # it would work
            for sent in sendings(operation, document["components"]["schemas"]):
                service.answers.append(http.request(verb, url, **sent))
            service.answers.append(http.request(verb, path.replace("{", CANARY).replace("}", "")))
    for content in (CANARY, f'{{"{CANARY}', f'["{CANARY}"]', f'"{CANARY}"', "[" * 100_000):
        answer = http.post("/v1/fine_tuning/jobs", content=content, headers=JSON)
        service.answers.append(answer)
    service.answers.append(http.post("/v1/files", data={"purpose": CANARY}, files={"file": CANARY.encode()}))
    service.answers.append(http.get(f"/v1/files?key={service.key}"))
    service.answers.append(http.get(f"/v1/files/{service.key}"))
    service.answers.append(http.get("/v1/files", headers={"authorization": f"Bearer {service.key}x"}))
    # A working one too, so that rows of every kind exist.
    job = make_job(http)
    good(http.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel"))
    good(http.post("/v1/api_keys", json={"name": "one"}))


def sendings(operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """For each field of the body and each parameter: a request with the canary in it, of the wrong kind."""
    for parameter in operation.get("parameters", []):
        if parameter["in"] == "query":
            yield {"params": {parameter["name"]: CANARY}}
    content = operation.get("requestBody", {}).get("content", {})
    body = content.get("application/json", {}).get("schema", {})
    fields = schemas.get(str(body.get("$ref", "")).rsplit("/", 1)[-1], {}).get("properties", {})
    for name in fields:
        for value in (CANARY, [CANARY], {"type": CANARY, "more": [CANARY]}):
            yield {"json": {name: value}}
    if fields:
        yield {"json": {"unknown": CANARY}}


def test_a_refusal_gives_no_value_back(service: Service) -> None:
    refused = [answer for answer in service.answers if answer.status_code >= 400]
    assert len(refused) > 100
    assert [answer.text for answer in refused if answer.status_code >= 500] == []
    echoing = []
    for answer in refused:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        if CANARY in answer.text and error["code"] not in NAMING | {"unknown_parameter"}:
            echoing.append((str(answer.request.url), error))
    assert echoing == []


def test_a_key_that_is_told_as_unknown_is_named_but_no_value(service: Service) -> None:
    """Names of keys are told back, or nobody could mend a misspelt one; what stands under them is not."""
    unknown = [answer.json()["error"] for answer in service.answers if '"unknown_parameter"' in answer.text]
    assert len(unknown) > 3
    assert [error for error in unknown if error["param"] == "unknown" and CANARY in error["message"]] == []


def test_nothing_of_it_is_in_the_logs_or_the_audit_log(service: Service) -> None:
    log = service.log.read_text()
    assert CANARY not in log
    assert "Traceback" not in log
    assert CANARY not in service.database(), "every request with it was refused"
    assert CANARY not in service.redis()


def test_no_secret_of_a_key_is_in_the_database_the_logs_or_redis(service: Service) -> None:
    places = {"database": service.database(), "log": service.log.read_text(), "redis": service.redis()}
    for key in (service.key, service.other_key):
        secret = key.split("_", 2)[2][:43]
        assert [name for name, text in places.items() if secret in text] == []
    assert service.key[3:11] in places["database"], "the test looks at the right rows"


def test_the_key_is_in_no_argument_list(service: Service) -> None:
    """Which everybody on a machine can read."""
    said = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(service.key.encode() in text for text in said)
