"""The API of tests/app, and its figures as a scrape reads them."""

from collections.abc import Callable, Iterator

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.database import WorkerDatabase
from tests.app.conftest import Api, api, client, http, more_settings, rows

__all__ = ["api", "client", "http", "more_settings", "rows"]
Scrape = Callable[[], dict[str, float]]


def read(text: str) -> dict[str, float]:
    """Samples as they would be written: `name{label="value"}` → value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@pytest.fixture
def scrape(http: httpx2.Client) -> Scrape:
    def now() -> dict[str, float]:
        return read(http.get("/metrics").raise_for_status().text)

    return now


@pytest.fixture(scope="module")
def database(api: Api) -> Iterator[WorkerDatabase]:
    database = WorkerDatabase(api.settings)
    yield database
    database.close()
