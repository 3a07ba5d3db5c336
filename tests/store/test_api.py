"""The API on a bucket: bytes through it or by a signed link, and what is told when the bucket is away."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from app import bucket
from app.auth import ensure_first_key
from app.embedded.process import EmbeddedError
from app.embedded.up import prepare
from app.main import create_app
from app.settings import Settings
from app.storage import StoreRefused
from tests.app.conftest import Api, serving
from tests.store.bucket_server import BUCKET, KEY_ID, SECRET, BucketServer
from tests.store.test_bucket import FAST

ROWS = b'{"text": "%s"}\n' % (b"one " * 1000) * 2500  # more than one piece
HOME = {"store": f"s3://{BUCKET}/api", "store_key_id": KEY_ID, "store_secret": SECRET, "min_free_bytes": 0}


@pytest.fixture(scope="module")
def settings(
    server: BucketServer, module_database_url: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    given: dict[str, Any] = {**HOME, "store_endpoint": server.url}
    home = tmp_path_factory.mktemp("api")
    return Settings(home=home, database_url=module_database_url, redis_url=redis_url, **given)


@pytest.fixture(scope="module")
def api(settings: Settings) -> Iterator[Api]:
    key = ensure_first_key(settings).read_text().strip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket.Bucket._client, "__defaults__", (FAST, bucket.CLIENT))
        with serving(settings) as url:
            yield Api(url, key, key, settings)


@pytest.fixture(scope="module")
def linking(
    api: Api, settings: Settings, server: BucketServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Api]:
    """Another replica, with a home of its own, which sends clients to the bucket."""
    more = {"home": tmp_path_factory.mktemp("other"), "store_public_endpoint": server.url}
    with serving(settings.model_copy(update=more)) as url:
        yield Api(url, api.key, api.key, settings)


@pytest.fixture(scope="module")
def file(api: Api, server: BucketServer) -> str:
    with api.client() as client:
        made = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    assert server.objects()[f"api/files/{made.id}"] == ROWS
    return made.id


def lasting(server: BucketServer) -> dict[str, str]:
    """What lies in the bucket, by its hash, so that a difference is short to read; without the parts of
    uploads, which the API removes in its own time once they are a file."""
    return {
        key: sha256(content).hexdigest()
        for key, content in server.objects().items()
        if not key.startswith("api/uploads/")
    }


def test_a_file_comes_back_whole_and_in_ranges(api: Api, file: str) -> None:
    size = len(ROWS)
    with api.http() as http:
        whole = http.get(f"/v1/files/{file}/content")
        etag = whole.headers["etag"]
        assert (whole.status_code, whole.content, int(whole.headers["content-length"])) == (200, ROWS, size)
        for asked, start, end in (
            ("bytes=0-0", 0, 1),
            ("bytes=8388600-8388620", 8388600, 8388621),
            (f"bytes={size - 3}-", size - 3, size),
            ("bytes=-5", size - 5, size),
            (f"bytes=5-{size + 5}", 5, size),
        ):
            part = http.get(f"/v1/files/{file}/content", headers={"range": asked})
            assert (part.status_code, part.content) == (206, ROWS[start:end]), asked
            assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"
        for asked in (f"bytes={size}-", "bytes=-0"):
            refused = http.get(f"/v1/files/{file}/content", headers={"range": asked})
            assert (refused.status_code, refused.headers["content-range"]) == (416, f"bytes */{size}"), asked
        for asked in ("bytes=0-1,4-5", "rows=0-1", "bytes=-", "bytes=x-", f"bytes={'9' * 5000}-"):
            assert http.get(f"/v1/files/{file}/content", headers={"range": asked}).status_code == 200, asked
        for tag, status in ((etag, 206), ('"another"', 200)):
            headers = {"range": "bytes=0-9", "if-range": tag}
            assert http.get(f"/v1/files/{file}/content", headers=headers).status_code == status


def test_where_clients_reach_the_bucket_they_are_sent_there(linking: Api, file: str) -> None:
    """By a link that carries no key of ours, and not before the key is checked that came with the request."""
    path = f"/v1/files/{file}/content"
    with linking.http() as http:
        found = http.get(path, headers={"range": "bytes=3-9"}, follow_redirects=False)
        assert found.status_code == 307
        assert found.headers["cache-control"] == "no-store"
        followed = httpx2.get(found.headers["location"], headers={"range": "bytes=3-9"})
        assert (followed.status_code, followed.content) == (206, ROWS[3:10])
        assert httpx2.get(linking.url + path, follow_redirects=False).status_code == 401
    with OpenAI(base_url=f"{linking.url}/v1", api_key=linking.key, max_retries=0) as client:
        assert client.files.content(file).read() == ROWS


def test_another_replica_looks_into_the_file(linking: Api, file: str) -> None:
    with linking.http() as http:
        found = http.get(f"/v1/files/{file}/report").json()
    assert (found["status"], found["bytes"]) == ("completed", len(ROWS)), found


def test_parts_become_a_file(api: Api, rows: Path, server: BucketServer) -> None:
    with api.client() as client:
        made = client.uploads.upload_file_chunked(
            file=rows.read_bytes(), filename="rows.jsonl", bytes=rows.stat().st_size,
            mime_type="application/jsonl", purpose="fine-tune", part_size=10,
        )  # fmt: skip
    assert made.file is not None
    assert server.objects()[f"api/files/{made.file.id}"] == rows.read_bytes()


def test_a_bucket_that_is_away_is_told_with_a_time_to_come_back(
    api: Api, file: str, rows: Path, server: BucketServer
) -> None:
    before = lasting(server)
    assert before
    server.stop()
    try:
        with api.http() as http:
            upload = {"files": {"file": rows.open("rb")}, "data": {"purpose": "fine-tune"}}
            for answer in (
                http.post("/v1/files", **upload),  # type: ignore[arg-type]
                http.get(f"/v1/files/{file}/content"),
                http.get(f"/v1/files/{file}/content", headers={"range": "bytes=0-1"}),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
                assert int(answer.headers["retry-after"]) > 0
            assert http.get("/readyz").json() == {"status": "ok", "degraded": ["store"]}
            assert http.get("/healthz").status_code == 200
    finally:
        server.start()
    assert lasting(server) == before
    with api.http() as http:
        assert http.get("/readyz").json() == {"status": "ok"}
        assert http.get(f"/v1/files/{file}/content").content == ROWS


async def test_a_start_with_a_wrong_key_is_refused_by_name(settings: Settings) -> None:
    wrong = settings.model_copy(update={"store": "s3://nowhere"})
    app = create_app(wrong)
    with pytest.raises(StoreRefused, match="FINETUNED_STORE: there is no bucket 'nowhere'"):
        async with app.router.lifespan_context(app):
            pass
    with pytest.raises(EmbeddedError, match="FINETUNED_STORE: there is no bucket 'nowhere'"):
        prepare(wrong)
