"""Files over the wire, with the official SDK and with what it would never send."""

import io
from pathlib import Path

import httpx2
import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from openai import OpenAI
from openai.types import FileObject

from tests.app.conftest import Api


def test_an_uploaded_file_comes_back_byte_for_byte(client: OpenAI, rows: Path) -> None:
    made = client.files.create(file=rows, purpose="fine-tune")
    assert (made.status, made.filename, made.bytes) == ("processed", "rows.jsonl", rows.stat().st_size)
    assert client.files.content(made.id).read() == rows.read_bytes()
    found = client.files.retrieve(made.id)
    assert found == made
    FileObject.model_validate_json(found.model_dump_json(), strict=True)


def test_raw_bytes_and_awkward_names_are_taken(client: OpenAI) -> None:
    assert client.files.create(file=b'{"text": "x"}', purpose="fine-tune").filename == "upload"
    named = client.files.create(file=('a "quoted" näme.jsonl', b'{"text": "x"}'), purpose="fine-tune")
    assert named.filename == 'a "quoted" näme.jsonl'


def test_a_name_that_cannot_be_kept_is_mended(http: httpx2.Client) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="../a%00b.jsonl"\r\n\r\n'
        b'{"text": "x"}\r\n--b--\r\n'
    )
    answer = http.post("/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 200
    assert answer.json()["filename"] == "../ab.jsonl"  # a label; no path is ever made of it


def test_a_malformed_row_is_named_by_its_line(client: OpenAI) -> None:
    made = client.files.create(file=b'{"text": "ok"}\n{"text": 3}\nnot json\n', purpose="fine-tune")
    assert made.status == "error"
    assert made.status_details is not None
    assert "line 2" in made.status_details
    assert "line 3" in made.status_details
    assert made.model_dump()["problems"] == [
        {"line": 2, "message": '"text" must be a string', "key": "text"},
        {"line": 3, "message": "not JSON: Expecting value at character 1", "key": None},
    ]
    assert made.model_dump()["shape"] == "text"


def test_what_no_database_keeps_is_told_all_the_same(client: OpenAI) -> None:
    rows = b'{"\\u0000": 1, "\\u0000": 2}\n{"text": {"\\ud800": "\\udfff"}}\n'
    made = client.files.create(file=rows, purpose="fine-tune")
    assert [problem["line"] for problem in made.model_dump()["problems"]] == [1, 2]


def test_a_plain_text_file_is_taken_as_text(client: OpenAI) -> None:
    made = client.files.create(file=("story.txt", b"Once upon a time.\n"), purpose="fine-tune")
    assert made.status == "processed"


def parquet(texts: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"review": texts}), sink)
    return sink.getvalue()


def test_a_table_is_taken_with_the_names_of_its_columns(client: OpenAI) -> None:
    made = client.files.create(
        file=("reviews.csv", b"question;answer\nWhy?;So\n"),
        purpose="fine-tune",
        extra_body={"columns": {"prompt": "question", "completion": "answer"}},
    )
    said = made.model_dump()
    assert (made.status, said["format"], said["shape"], said["rows"]) == (
        "processed", "csv", "prompt_completion", 1,
    )  # fmt: skip
    assert said["columns"] == {"prompt": "question", "completion": "answer"}
    content = parquet(["one", "two"])
    whole = client.files.create(file=content, purpose="fine-tune", extra_body={"columns": {"text": "review"}})
    said = whole.model_dump()
    assert (whole.status, said["format"], said["shape"], said["rows"]) == ("processed", "parquet", "text", 2)
    assert client.files.content(whole.id).read() == content


def test_what_unfolds_beyond_all_measure_is_told_and_hurts_nobody(client: OpenAI) -> None:
    """1,000 rows of a million letters each in a few hundred bytes; a few rows at a time are unfolded."""
    sink = io.BytesIO()
    table = pa.table(
        {"text": pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["a" * 1_000_001])}
    )
    pq.write_table(table, sink, compression="zstd")
    made = client.files.create(file=sink.getvalue(), purpose="fine-tune")
    assert made.status == "error"
    assert made.status_details is not None
    assert made.status_details.startswith("line 1: longer than 1,000,000 bytes")


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"data": {"purpose": "nonsense"}, "files": {"file": b"x"}}, "purpose"),
        ({"data": {}, "files": {"file": b"x"}}, "purpose"),
        ({"data": {"purpose": "fine-tune"}, "files": {"file": b""}}, "file"),
        ({"data": {"purpose": "fine-tune"}, "files": {"other": b"x"}}, "file"),
        ({"data": {"purpose": "fine-tune", "porpose": "x"}, "files": {"file": b"x"}}, "porpose"),
        (
            {"data": {"purpose": "fine-tune", "expires_after[anchor]": "x"}, "files": {"file": b"x"}},
            "expires_after.anchor",
        ),
        ({"data": {"purpose": "fine-tune", "format": "xml"}, "files": {"file": b"x"}}, "format"),
        ({"data": {"purpose": "fine-tune", "columns[a]": "x"}, "files": {"file": b"x"}}, "columns[a]"),
        ({"data": {"purpose": "fine-tune", "columns[text]": ""}, "files": {"file": b"x"}}, "columns[text]"),
    ],
)
def test_a_bad_form_is_refused_by_field(http: httpx2.Client, form: dict[str, object], param: str) -> None:
    answer = http.post("/v1/files", **form)  # type: ignore[arg-type]
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_what_says_how_to_read_a_file_comes_before_it(http: httpx2.Client) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ntext\r\n'
        b'--b\r\nContent-Disposition: form-data; name="format"\r\n\r\ncsv\r\n--b--\r\n'
    )
    answer = http.post("/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "format")


def test_a_form_cut_off_in_the_middle_leaves_nothing(http: httpx2.Client, api: Api) -> None:
    before = sorted((api.settings.storage_folder / "files").glob("*"))
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n{"text": "x"}'
    answer = http.post("/v1/files", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 400
    assert sorted((api.settings.storage_folder / "files").glob("*")) == before


def test_expiry_is_reported(client: OpenAI, rows: Path) -> None:
    made = client.files.create(
        file=rows, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at is not None
    assert abs(made.expires_at - made.created_at - 3600) <= 1


def test_paging_visits_every_file_once(client: OpenAI, rows: Path) -> None:
    made = {client.files.create(file=rows, purpose="fine-tune").id for _ in range(5)}
    seen = [file.id for file in client.files.list(limit=2)]
    assert made <= set(seen)
    assert len(seen) == len(set(seen))
    with pytest.raises(openai.NotFoundError):
        client.files.list(after="file-unknown")


def test_a_stranger_sees_nothing(api: Api, client: OpenAI, rows: Path) -> None:
    made = client.files.create(file=rows, purpose="fine-tune")
    with api.client(api.stranger_key) as stranger:
        assert stranger.files.list().data == []
        for call in (stranger.files.retrieve, stranger.files.content, stranger.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(made.id)
    assert client.files.retrieve(made.id).id == made.id


def test_a_deleted_file_is_gone(client: OpenAI, rows: Path) -> None:
    made = client.files.create(file=rows, purpose="fine-tune")
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_a_range_of_the_content_can_be_asked_for(http: httpx2.Client, client: OpenAI, rows: Path) -> None:
    made = client.files.create(file=rows, purpose="fine-tune")
    answer = http.get(f"/v1/files/{made.id}/content", headers={"range": "bytes=2-6"})
    assert answer.status_code == 206
    assert answer.content == rows.read_bytes()[2:7]
