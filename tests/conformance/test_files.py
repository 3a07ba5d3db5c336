"""Every call of `client.files`, as contract and SDK have it."""

import hashlib
import io
from pathlib import Path

import openai
import pytest

from tests.conformance.conftest import Client

ROWS = b'{"text": "one"}\n{"text": "two"}\n'


def test_a_file_is_made_found_listed_read_and_deleted(call: Client) -> None:
    made = call("files.create", file=("rows.jsonl", ROWS), purpose="fine-tune")
    assert (made.object, made.bytes, made.filename, made.purpose) == (
        "file",
        len(ROWS),
        "rows.jsonl",
        "fine-tune",
    )
    assert made.expires_at is None
    assert call("files.retrieve", made.id) == made
    assert made.id in [file.id for file in call("files.list", purpose="fine-tune").data]
    content = call("files.content", made.id)
    assert content.content == content.read() == ROWS
    assert hashlib.sha256(content.content).hexdigest() == made.sha256
    deleted = call("files.delete", made.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (made.id, "file", True)
    with pytest.raises(openai.NotFoundError):
        call("files.retrieve", made.id)


def test_bytes_without_a_name_handles_and_paths_are_taken(call: Client, tmp_path: Path) -> None:
    path = tmp_path / "Größe.jsonl"
    path.write_bytes(ROWS)
    assert call("files.create", file=ROWS, purpose="fine-tune").filename == "upload"
    assert call("files.create", file=io.BytesIO(ROWS), purpose="fine-tune").filename == "upload"
    assert call("files.create", file=path, purpose="fine-tune").filename == "Größe.jsonl"
    with path.open("rb") as opened:
        assert call("files.create", file=opened, purpose="fine-tune").status == "processed"


def test_an_expiry_is_kept_and_told(call: Client) -> None:
    after = {"anchor": "created_at", "seconds": 3600}
    made = call("files.create", file=("a.jsonl", ROWS), purpose="fine-tune", expires_after=after)
    assert made.expires_at == made.created_at + 3600


def test_pages_follow_one_another_in_both_orders(call: Client) -> None:
    made = [call("files.create", file=(f"{n}.jsonl", ROWS), purpose="batch").id for n in range(5)]
    newest = [file.id for file in call.every("files.list", purpose="batch", limit=2)]
    assert newest[:5] == made[::-1]
    oldest = [file.id for file in call.every("files.list", purpose="batch", limit=2, order="asc")]
    assert oldest == newest[::-1]
    page = call("files.list", limit=2)
    assert (page.has_more, len(page.data)) == (True, 2)
    with pytest.raises(openai.NotFoundError):
        call("files.list", after="file-nope")


def test_waiting_ends_at_once_for_good_and_for_bad(call: Client) -> None:
    good = call("files.create", file=("a.jsonl", ROWS), purpose="fine-tune")
    bad = call("files.create", file=("a.jsonl", b"no json\n"), purpose="fine-tune")
    assert call("files.wait_for_processing", good.id, max_wait_seconds=60).status == "processed"
    refused = call("files.wait_for_processing", bad.id, max_wait_seconds=60)
    assert refused.status == "error"
    assert "line 1" in (refused.status_details or "")
