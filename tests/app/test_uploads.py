"""Uploads in parts, with the official SDK and with what it would never send."""

import asyncio
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import psycopg
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Upload
from openai.types.uploads import UploadPart

from app.routes import uploads
from app.storage import Store
from app.uploads.compose import compose
from app.uploads.rows import Upload as Row
from tests.app.conftest import Api
from tests.app.test_keys import sql

__all__ = ["sql"]
MIB = 1024 * 1024
ROWS = b"".join(b'{"text": "row %d"}\n' % number for number in range(20_000))
PURPOSE: Any = "fine-tune"


@pytest.fixture
def pending(client: OpenAI) -> Upload:
    """An upload of three parts of four bytes."""
    return client.uploads.create(bytes=12, filename="x.txt", mime_type="text/plain", purpose=PURPOSE)


def part(client: OpenAI, upload: Upload, data: bytes) -> str:
    return client.uploads.parts.create(upload.id, data=data).id


def gone(api: Api, upload_id: str) -> bool:
    return not (api.settings.storage_folder / "uploads" / upload_id).exists()


@pytest.fixture
def patient(http: httpx2.Client) -> Any:
    """Waits until the dispatcher, which looks every second, has done what is asked for."""

    def wait(done: Any) -> None:
        for _ in range(600):
            if done():
                return
            http.get("/healthz")
            asyncio.run(asyncio.sleep(0.1))
        raise AssertionError("it never was")

    return wait


def test_the_sdk_uploads_a_file_in_parts(api: Api, client: OpenAI, tmp_path: Path, patient: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    done = client.uploads.upload_file_chunked(
        file=path,
        mime_type="application/jsonl",
        purpose=PURPOSE,
        part_size=64 * 1024,
        md5=hashlib.md5(ROWS, usedforsecurity=False).hexdigest(),
    )
    Upload.model_validate_json(done.model_dump_json(), strict=True)
    assert (done.status, done.filename, done.bytes) == ("completed", "rows.jsonl", len(ROWS))
    assert done.expires_at - done.created_at == 3600
    assert done.file is not None
    assert (done.file.status, done.file.bytes) == ("processed", len(ROWS))
    assert client.files.content(done.file.id).read() == ROWS
    assert client.files.retrieve(done.file.id) == done.file
    patient(lambda: gone(api, done.id))


async def test_the_async_sdk_does_too(api: Api) -> None:
    async with AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.key, max_retries=0) as client:
        done = await client.uploads.upload_file_chunked(
            file=ROWS,
            filename="rows.jsonl",
            bytes=len(ROWS),
            mime_type="application/jsonl",
            purpose=PURPOSE,
            part_size=100_000,
        )
    assert done.file is not None
    assert done.file.filename == "rows.jsonl"


def test_parts_come_side_by_side_and_the_order_is_told(client: OpenAI, pending: Upload) -> None:
    with ThreadPoolExecutor(3) as threads:
        ids = list(threads.map(lambda data: part(client, pending, data), (b"CCCC", b"aaaa", b"BBBB")))
    done = client.uploads.complete(pending.id, part_ids=[ids[1], ids[2], ids[0]])
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"aaaaBBBBCCCC"


def test_a_part_may_stand_twice_and_one_may_be_left_out(client: OpenAI, pending: Upload) -> None:
    a, b = part(client, pending, b"aaaa"), part(client, pending, b"bbbb")
    part(client, pending, b"cccc")
    done = client.uploads.complete(pending.id, part_ids=[a, b, a])
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"aaaabbbbaaaa"


def test_a_bad_row_is_named_by_its_line_across_parts(client: OpenAI) -> None:
    text = b'{"text": "a"}\n{"text": 3}\n'
    upload = client.uploads.create(
        bytes=len(text), filename="x.jsonl", mime_type="application/jsonl", purpose=PURPOSE
    )
    ids = [part(client, upload, text[at : at + 5]) for at in range(0, len(text), 5)]
    done = client.uploads.complete(upload.id, part_ids=ids)
    assert done.file is not None
    assert done.file.status == "error"
    assert "line 2" in (done.file.status_details or "")


def test_what_complete_refuses_leaves_the_upload_pending(client: OpenAI, pending: Upload) -> None:
    ids = [part(client, pending, data) for data in (b"aaaa", b"bbbb", b"cccc")]
    other = client.uploads.create(bytes=4, filename="y", mime_type="text/plain", purpose=PURPOSE)
    foreign = part(client, other, b"dddd")
    wrong = hashlib.md5(b"other", usedforsecurity=False).hexdigest()
    for body, code in (
        ({"part_ids": ids[:2]}, "wrong_size"),
        ({"part_ids": [*ids, ids[0]]}, "wrong_size"),
        ({"part_ids": [*ids[:2], foreign]}, "part_not_found"),
        ({"part_ids": ids, "md5": wrong}, "md5_mismatch"),
        ({"part_ids": ids, "md5": "short"}, "invalid_value"),
        ({"part_ids": []}, "invalid_value"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.uploads.complete(pending.id, **body)
        assert refused.value.code == code, body
    right = hashlib.md5(b"aaaabbbbcccc", usedforsecurity=False).hexdigest().upper()
    assert client.uploads.complete(pending.id, part_ids=ids, md5=right).status == "completed"


def test_nothing_is_left_in_the_store_of_what_was_refused(api: Api, client: OpenAI, pending: Upload) -> None:
    a = part(client, pending, b"aaaa")
    before = sorted(api.settings.storage_folder.glob("files/*"))
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(pending.id, part_ids=[a, a, a], md5="0" * 32)
    assert sorted(api.settings.storage_folder.glob("files/*")) == before


def test_an_upload_that_has_ended_takes_nothing_more(
    api: Api, client: OpenAI, sql: psycopg.Connection, patient: Any
) -> None:
    def ended(how: str) -> tuple[Upload, str]:
        upload = client.uploads.create(bytes=4, filename="x.txt", mime_type="text/plain", purpose=PURPOSE)
        kept = part(client, upload, b"aaaa")
        if how == "completed":
            client.uploads.complete(upload.id, part_ids=[kept])
        elif how == "cancelled":
            assert client.uploads.cancel(upload.id).status == "cancelled"
        else:
            sql.execute("UPDATE uploads SET expires_at = now() WHERE id = %s", [upload.id])
        return upload, kept

    for how in ("completed", "cancelled", "expired"):
        upload, kept = ended(how)
        for call in (
            lambda: part(client, upload, b"bbbb"),  # noqa: B023
            lambda: client.uploads.complete(upload.id, part_ids=[kept]),  # noqa: B023
            lambda: client.uploads.cancel(upload.id),  # noqa: B023
        ):
            with pytest.raises(openai.BadRequestError) as refused:
                call()
            assert refused.value.code == "invalid_upload_state"
            assert how in str(refused.value)
        patient(lambda: gone(api, upload.id))  # noqa: B023


def test_the_sdks_retries_change_nothing_more(http: httpx2.Client, client: OpenAI, pending: Upload) -> None:
    retry = {"x-stainless-retry-count": "1"}
    url = f"/v1/uploads/{pending.id}"
    first = http.post(f"{url}/parts", files={"data": ("upload", b"aaaabbbbcccc")}).json()
    again = http.post(f"{url}/parts", files={"data": ("upload", b"aaaabbbbcccc")}, headers=retry).json()
    assert again == first
    UploadPart.model_validate(again, strict=True)
    body = {"part_ids": [first["id"]]}
    done = http.post(f"{url}/complete", json=body).json()
    assert http.post(f"{url}/complete", json=body).status_code == 400
    assert http.post(f"{url}/complete", json=body, headers=retry).json() == done
    other = {"part_ids": [first["id"]], "md5": hashlib.md5(b"aaaabbbbcccc").hexdigest()}  # noqa: S324
    assert http.post(f"{url}/complete", json=other, headers=retry).status_code == 400
    another = client.uploads.create(bytes=1, filename="x", mime_type="text/plain", purpose=PURPOSE)
    assert http.post(f"/v1/uploads/{another.id}/cancel").status_code == 200
    assert http.post(f"/v1/uploads/{another.id}/cancel", headers=retry).json()["status"] == "cancelled"


def test_tries_to_complete_that_arrive_at_once_make_one_file(
    api: Api, http: httpx2.Client, client: OpenAI, pending: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And read the parts once: `compose` is counted, there being nothing else to see that by."""
    composed: list[str] = []

    async def counted(store: Store, upload: Row, *rest: Any) -> None:
        composed.append(upload.id)
        await compose(store, upload, *rest)

    monkeypatch.setattr(uploads, "compose", counted)
    before = len(list(api.settings.storage_folder.glob("files/*")))
    body = {"part_ids": [part(client, pending, b"aaaabbbbcccc")]}

    def complete(tries: int) -> httpx2.Response:
        headers = {"x-stainless-retry-count": str(tries)}
        return http.post(f"/v1/uploads/{pending.id}/complete", json=body, headers=headers)

    with ThreadPoolExecutor(5) as threads:
        answers = list(threads.map(complete, (1, 2, 3, 4, 5)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["file"]["id"] for answer in answers}) == 1
    assert composed == [pending.id]
    assert len(list(api.settings.storage_folder.glob("files/*"))) == before + 1


def test_an_upload_completed_in_its_last_second_does_not_expire_while_its_file_is_made(
    client: OpenAI, sql: psycopg.Connection, pending: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file takes minutes; here, until the dispatcher, which looks every second, has come by."""

    async def slow(*given: Any) -> None:
        await asyncio.sleep(4)
        await compose(*given)

    monkeypatch.setattr(uploads, "compose", slow)
    whole = part(client, pending, b"aaaabbbbcccc")
    sql.execute("UPDATE uploads SET expires_at = now() + interval '1 s' WHERE id = %s", [pending.id])
    done = client.uploads.complete(pending.id, part_ids=[whole])
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"aaaabbbbcccc"


def test_a_stranger_finds_no_upload(api: Api, http: httpx2.Client, client: OpenAI, pending: Upload) -> None:
    mine = part(client, pending, b"aaaabbbbcccc")
    with api.client(api.stranger_key) as stranger:
        theirs = stranger.uploads.create(bytes=12, filename="x", mime_type="text/plain", purpose=PURPOSE)
        for call in (
            lambda: stranger.uploads.parts.create(pending.id, data=b"x"),
            lambda: stranger.uploads.complete(pending.id, part_ids=[mine]),
            lambda: stranger.uploads.cancel(pending.id),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        with pytest.raises(openai.BadRequestError) as refused:
            stranger.uploads.complete(theirs.id, part_ids=[mine])
        assert refused.value.code == "part_not_found"
    assert client.uploads.complete(pending.id, part_ids=[mine]).status == "completed"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": -1}, "bytes"),
        ({"bytes": 2**63}, "bytes"),
        ({"bytes": "12"}, "bytes"),
        ({"filename": ""}, "filename"),
        ({"filename": "x" * 256}, "filename"),
        ({"mime_type": "a\nb: c"}, "mime_type"),
        ({"purpose": "fun"}, "purpose"),
        ({"expires_after": {"anchor": "now", "seconds": 3600}}, "expires_after.anchor"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after.seconds"),
        ({"md5": "x"}, "md5"),
    ],
)
def test_a_bad_announcement_is_refused_by_field(
    http: httpx2.Client, body: dict[str, Any], param: str
) -> None:
    good = {"bytes": 12, "filename": "x", "mime_type": "text/plain", "purpose": "fine-tune"}
    answer = http.post("/v1/uploads", json={**good, **body})
    assert answer.status_code == (413 if body == {"bytes": 2**63} else 400), answer.text
    assert answer.json()["error"]["param"] == param


def test_the_file_expires_as_announced(client: OpenAI) -> None:
    upload = client.uploads.create(
        bytes=1,
        filename="x.txt",
        mime_type="text/plain",
        purpose=PURPOSE,
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    done = client.uploads.complete(upload.id, part_ids=[part(client, upload, b"a")])
    assert done.file is not None
    assert done.file.expires_at is not None
    assert abs(done.file.expires_at - done.file.created_at - 3600) <= 1


def test_a_part_has_64_mib_and_not_a_byte_more(client: OpenAI, http: httpx2.Client) -> None:
    upload = client.uploads.create(bytes=64 * MIB, filename="x.txt", mime_type="text/plain", purpose=PURPOSE)
    url = f"/v1/uploads/{upload.id}/parts"
    most = bytes(64 * MIB)
    assert http.post(url, files={"data": ("upload", most)}).status_code == 200
    assert http.post(url, files={"data": ("upload", most + b"x")}).status_code == 413
    # The same once more may be a retry that we do not know for one; after that it is not.
    assert http.post(url, files={"data": ("upload", most)}).status_code == 200
    assert http.post(url, files={"data": ("upload", b"x")}).json()["error"]["code"] == "too_many_bytes"
    assert client.uploads.cancel(upload.id).status == "cancelled"


@pytest.mark.parametrize(
    "form",
    [
        {"files": {"data": ("upload", b"")}},
        {"files": {"file": ("upload", b"x")}},
        {"files": {"data": ("upload", b"x")}, "data": {"more": "x"}},
        {"data": {"data": "x"}},
        {"content": b"x"},
    ],
)
def test_a_bad_part_is_refused_and_leaves_nothing(
    api: Api, http: httpx2.Client, pending: Upload, form: Any
) -> None:
    assert http.post(f"/v1/uploads/{pending.id}/parts", **form).status_code == 400
    folder = api.settings.storage_folder / "uploads" / pending.id
    assert not folder.exists() or list(folder.iterdir()) == []
