"""Every limit holds to the unit: what is just allowed works, one more is refused by name."""

import gzip
import json
from typing import Any

import httpx2
import pytest

from app.body import MAX_DEPTH
from app.dataset import MAX_LINE_BYTES
from app.limits import MAX_JSON_BYTES
from app.multipart import MAX_FIELD_BYTES, MAX_FIELDS
from tests.security.things import good, make_file

JOBS = "/v1/fine_tuning/jobs"
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=b"}


def padded(size: int) -> bytes:
    """A JSON body of so many bytes that a completion would take."""
    body = json.dumps({"model": "nothing", "prompt": ""}).encode()
    return body + b" " * (size - len(body))


def test_a_json_body_has_16_mib_and_not_a_byte_more(http: httpx2.Client) -> None:
    assert http.post("/v1/completions", content=padded(MAX_JSON_BYTES), headers=JSON).status_code == 404
    refused = http.post("/v1/completions", content=padded(MAX_JSON_BYTES + 1), headers=JSON)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")


def test_nor_has_one_that_does_not_say_how_long_it_is(http: httpx2.Client) -> None:
    def pieces(size: int) -> Any:
        body = padded(size)
        return (body[at : at + 65536] for at in range(0, size, 65536))

    assert http.post("/v1/completions", content=pieces(MAX_JSON_BYTES), headers=JSON).status_code == 404
    assert http.post("/v1/completions", content=pieces(MAX_JSON_BYTES + 1), headers=JSON).status_code == 413


def nested(levels: int) -> dict[str, Any]:
    """A body with so many levels, itself being the first."""
    inner: Any = []
    for _ in range(levels - 3):
        inner = [inner]
    return {"model": "tiny-gpt2", "training_file": "x", "hyperparameters": {"lora_targets": inner}}


def test_json_is_64_levels_deep_and_not_one_more(http: httpx2.Client) -> None:
    allowed = http.post(JOBS, json=nested(MAX_DEPTH)).json()["error"]
    assert "levels" not in allowed["message"], "refused for what it says, not for how deep"
    refused = http.post(JOBS, json=nested(MAX_DEPTH + 1))
    assert refused.status_code == 400
    assert f"more than {MAX_DEPTH} levels" in refused.json()["error"]["message"]


@pytest.mark.parametrize("levels", [500, 900, 2_000, 1_000_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_no_depth_breaks_anything(http: httpx2.Client, levels: int, opening: str, closing: str) -> None:
    deep = opening * levels + "1" + closing * levels
    for content in (deep, f'{{"metadata": {deep}}}', f'{{"method": {{"type": "dpo", "dpo": {deep}}}}}'):
        assert http.post(JOBS, content=content, headers=JSON).status_code == 400


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip", "x"])
@pytest.mark.parametrize("path", [JOBS, "/v1/files", "/v1/uploads/upload_1/parts", "/v1/completions"])
def test_a_compressed_body_is_refused_unread(http: httpx2.Client, encoding: str, path: str) -> None:
    answer = http.post(path, content=gzip.compress(bytes(1000)), headers={"content-encoding": encoding})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")


def test_a_body_that_says_it_is_plain_is_read(http: httpx2.Client) -> None:
    headers = {"content-encoding": "Identity"}
    assert http.post(JOBS, json={}, headers=headers).status_code == 400


def field(name: str, value: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)


def file_field(data: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n%s\r\n--b--\r\n' % data


def test_a_form_has_64_parts_and_not_one_more(http: httpx2.Client) -> None:
    for count, code in ((MAX_FIELDS, "unknown_parameter"), (MAX_FIELDS + 1, "invalid_form")):
        fields = b"".join(field(f"f{number}", b"x") for number in range(count - 1))
        answer = http.post("/v1/files", content=fields + file_field(b"x"), headers=FORM)
        assert answer.json()["error"]["code"] == code


def test_a_field_has_64_kib_and_not_a_byte_more(http: httpx2.Client) -> None:
    for size, said in ((MAX_FIELD_BYTES, "purpose must be"), (MAX_FIELD_BYTES + 1, "too long")):
        form = field("purpose", b"x" * size) + file_field(b"x")
        answer = http.post("/v1/files", content=form, headers=FORM)
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]


def test_a_line_has_a_million_bytes_and_not_one_more(http: httpx2.Client) -> None:
    for size, status in ((MAX_LINE_BYTES, "processed"), (MAX_LINE_BYTES + 1, "error")):
        line = b'{"text": "' + b"x" * (size - 12) + b'"}'
        assert len(line) == size
        form: dict[str, Any] = {"data": {"purpose": "fine-tune"}, "files": {"file": ("x.jsonl", line)}}
        assert good(http.post("/v1/files", **form))["status"] == status


def test_many_parts_of_a_form_cost_nothing(http: httpx2.Client) -> None:
    form = b"".join(field("f", b"") for _ in range(10_000)) + file_field(b"x")
    assert http.post("/v1/files", content=form, headers=FORM).json()["error"]["code"] == "invalid_form"
    assert make_file(http), "and the next one is served"
