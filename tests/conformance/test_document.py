"""The OpenAPI document against a live server: what it says is what happens, whatever is sent.

Schemathesis makes requests of each kind the document allows, and of kinds it forbids, and holds the answers
to it: no server error, no status, type or shape that is not documented, no key ignored, no bad data taken.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from app.database import WorkerDatabase
from app.main import create_app
from app.openapi import ANSWERS, JOBS, document
from app.settings import Settings
from tests.app.conftest import Api
from tests.stand_ins.reporter import Reporter

EXAMPLES = 12  # of each call
STRANGERS = 4  # of each that names something, with names of nothing
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.ignored_auth,
]


@pytest.fixture(scope="module")
def there(api: Api) -> Iterator[dict[str, str]]:
    """A file, and a job that has succeeded with a model."""
    database = WorkerDatabase(api.settings)
    with api.client() as client:
        file = client.files.create(file=("a.jsonl", b'{"text": "one"}\n' * 9), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file.id)
    worker = Reporter(api.settings, database, job.id)
    worker.prepare()
    worker.steps(*range(1, 31))
    worker.evaluate(30)
    worker.save(30)
    worker.succeed()
    yield {"file_id": file.id, "job_id": job.id, "model": worker.model_name}
    database.close()


MADE = document(create_app(Settings(database_url="postgresql://x/y", redis_url="redis://x")))
# Bad data is sent with a good key, so for that the document says nothing of keys.
KEYLESS = copy.deepcopy(MADE)
for _path in KEYLESS["paths"].values():
    for _operation in _path.values():
        _operation.pop("security", None)


def operations(made: dict[str, Any]) -> list[Any]:
    return [found.ok() for found in schemathesis.openapi.from_dict(made).get_all_operations()]


GOOD = operations(MADE)
CASES = [
    *((operation, GenerationMode.POSITIVE, False) for operation in GOOD),
    *((operation, GenerationMode.POSITIVE, True) for operation in GOOD if "{" in operation.path),
    *((operation, GenerationMode.NEGATIVE, False) for operation in operations(KEYLESS)),
]
NAMES = [f"{mode.value}{'-known' * known} {operation.label}" for operation, mode, known in CASES]
LEFT_OUT = (
    f"GET {JOBS}/{{job_id}}/events/stream",  # never ends; tests/app/test_progress.py reads it
    "DELETE /v1/api_keys/me",  # the key that all of this is sent with
)


@pytest.mark.parametrize(("operation", "mode", "known"), CASES, ids=NAMES)
def test_the_document_is_true(
    operation: Any, mode: GenerationMode, known: bool, api: Api, there: dict[str, str]
) -> None:
    """`known`: ids in the path are those of things that are there."""
    if operation.label in LEFT_OUT:
        return

    elsewhere = mode is GenerationMode.POSITIVE and "{" in operation.path and not known
    checks = list(CHECKS)

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=STRANGERS if elsewhere else EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Any) -> None:
        if known and case.path_parameters:
            case.path_parameters |= {name: there[name] for name in case.path_parameters if name in there}
        key = {"Authorization": f"Bearer {api.key}"}
        answer = case.call_and_validate(base_url=api.url, headers=key, checks=checks, timeout=60)
        if answer.status_code < 300 and openapi_checks.ignored_auth in checks:
            # It was asked twice more, without a key and with a wrong one: that is so whatever else is sent.
            checks.remove(openapi_checks.ignored_auth)

    try:
        send()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "a call without input has no bad one"


def test_every_call_below_v1_wants_a_key_and_tells_how_it_fails() -> None:
    for path, operations in MADE["paths"].items():
        for verb, operation in operations.items():
            responses = set(operation["responses"])
            assert "422" not in responses, (verb, path)
            if path.startswith("/v1/"):
                assert operation["security"], (verb, path)
                assert {"400", "401", "403", "429", "503"} <= responses, (verb, path)


def test_every_answer_that_is_described_belongs_to_a_call() -> None:
    calls = {f"{verb.upper()} {path}" for path, operations in MADE["paths"].items() for verb in operations}
    assert set(ANSWERS) <= calls
