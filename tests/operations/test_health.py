"""/readyz tells what works and what does not, and 503 only where requests are better sent elsewhere."""

from pathlib import Path
from typing import Any

import httpx2
import psycopg

from app.database import migrate, revisions
from app.settings import Settings
from tests.app.conftest import serving


def ready(url: str) -> tuple[int, dict[str, Any]]:
    answer = httpx2.get(f"{url}/readyz", timeout=20)
    return answer.status_code, answer.json()


def test_a_schema_that_is_older_is_no_place_to_send_requests_to_and_a_newer_one_is(
    empty_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, database_url=empty_database_url, redis_url=redis_url, min_free_bytes=0)
    behind = (503, {"status": "unavailable", "unavailable": ["schema"]})
    with serving(settings) as url:
        assert ready(url) == behind, "nothing there"
        migrate(settings, revisions()[1])
        assert ready(url) == behind
        migrate(settings)
        assert ready(url) == (200, {"status": "ok"})
        address = empty_database_url.replace("+psycopg", "")
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("UPDATE alembic_version SET version_num = 'of a later release'")
        assert ready(url) == (200, {"status": "ok"})
        assert httpx2.get(f"{url}/healthz").json() == {"status": "ok"}


def test_what_does_not_work_is_named_while_the_rest_goes_on(database_url: str, tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        database_url=database_url,
        redis_url="redis://127.0.0.1:1",
        generator_url="http://127.0.0.1:1,http://127.0.0.1:2",
        min_free_bytes=2**62,
    )
    with serving(settings) as url:
        assert ready(url) == (200, {"status": "ok", "degraded": ["broker", "disk", "generator"]})
