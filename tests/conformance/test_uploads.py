"""Every call of `client.uploads`, as contract and SDK have it."""

import hashlib
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conformance.conftest import Client

ROWS = b'{"text": "one"}\n{"text": "two"}\n{"text": "three"}\n'


def begin(call: Client, size: int = len(ROWS)) -> Any:
    return call(
        "uploads.create", bytes=size, filename="rows.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )


def test_parts_sent_in_any_order_become_a_file_in_the_order_asked_for(call: Client) -> None:
    upload = begin(call)
    assert (upload.object, upload.status, upload.file) == ("upload", "pending", None)
    assert upload.expires_at > upload.created_at
    second = call("uploads.parts.create", upload.id, data=ROWS[20:])
    first = call("uploads.parts.create", upload.id, data=ROWS[:20])
    assert (first.object, first.upload_id) == ("upload.part", upload.id)
    md5 = hashlib.md5(ROWS, usedforsecurity=False).hexdigest()
    done = call("uploads.complete", upload.id, part_ids=[first.id, second.id], md5=md5)
    assert (done.status, done.file.bytes, done.file.status) == ("completed", len(ROWS), "processed")
    assert call("files.content", done.file.id).content == ROWS
    with pytest.raises(openai.BadRequestError):
        call("uploads.parts.create", upload.id, data=b"more")


def test_a_wrong_sum_size_or_part_is_refused(call: Client) -> None:
    upload = begin(call)
    part = call("uploads.parts.create", upload.id, data=ROWS[:20])
    for asked in (
        {"part_ids": [part.id]},
        {"part_ids": [part.id, "part_nope"]},
        {"part_ids": [part.id], "md5": "0" * 32},
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            call("uploads.complete", upload.id, **asked)
        assert refused.value.code


def test_a_cancelled_upload_takes_nothing_more(call: Client) -> None:
    upload = begin(call)
    assert call("uploads.cancel", upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        call("uploads.parts.create", upload.id, data=ROWS)
    with pytest.raises(openai.NotFoundError):
        call("uploads.cancel", "upload_nope")


def test_the_sdks_own_chunked_upload_arrives_whole(call: Client, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    done = call(
        "uploads.upload_file_chunked", file=path, mime_type="text/jsonl", purpose="fine-tune", part_size=16
    )
    assert done.status == "completed"
    assert call("files.content", done.file.id).content == ROWS
