"""One API for the whole suite, driven by either client of the SDK."""

from collections.abc import Callable, Iterator

import pytest

from app.database import WorkerDatabase
from tests.app.conftest import Api
from tests.app.conftest import api as api
from tests.app.conftest import more_settings as more_settings
from tests.conformance.driver import Asynchronous, Synchronous
from tests.stand_ins.reporter import Reporter

Client = Synchronous | Asynchronous


@pytest.fixture(params=[Synchronous, Asynchronous], ids=["sync", "async"])
def call(request: pytest.FixtureRequest, api: Api) -> Iterator[Client]:
    client: Client = request.param(api.url, api.key)
    yield client
    client.close()


@pytest.fixture
def file_id(call: Client) -> str:
    rows = b'{"text": "one"}\n{"text": "two"}\n'
    file: str = call("files.create", file=("rows.jsonl", rows), purpose="fine-tune").id
    return file


@pytest.fixture
def work(api: Api) -> Iterator[Callable[[str], Reporter]]:
    """Claims a job as a worker would."""
    database = WorkerDatabase(api.settings)
    yield lambda job_id: Reporter(api.settings, database, job_id)
    database.close()
