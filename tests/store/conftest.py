"""Both stores, made alike: a folder, and a bucket of a server that checks what it is sent."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings
from app.storage import Store, open_store
from tests.store.bucket_server import BUCKET, KEY_ID, SECRET, BucketServer

NewSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServer]:
    server = BucketServer(tmp_path_factory.mktemp("server"))
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def bucket_settings(server: BucketServer, tmp_path: Path) -> NewSettings:
    """Settings of a machine that has the bucket; each call is another machine unless `home` is given."""
    machines = iter(range(100))

    def new(**more: Any) -> Settings:
        given: dict[str, Any] = {
            "home": tmp_path / f"machine-{next(machines)}",
            # Each test its own: the server is shared.
            "store": f"s3://{BUCKET}/{tmp_path.name}",
            "store_endpoint": server.url,
            "store_key_id": KEY_ID,
            "store_secret": SECRET,
        }
        return Settings(**(given | more))

    return new


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, bucket_settings: NewSettings) -> Store:
    return open_store(bucket_settings() if request.param == "bucket" else Settings(home=tmp_path))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    return path
