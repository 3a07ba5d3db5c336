"""Text that no column takes is an answer of 4xx, never of 500."""

from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

JOBS = "/v1/fine_tuning/jobs"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/a%00b",
        "/v1/models/a%00b",
        f"{JOBS}/a%00b",
        f"{JOBS}?after=a%00b",
        f"{JOBS}?metadata[a]=%00",
    ],
)
def test_a_nul_in_a_url(http: httpx2.Client, path: str) -> None:
    assert 200 <= http.get(path).status_code < 500


@pytest.mark.parametrize(
    "body",
    [
        {"model": "a\x00"},
        {"training_file": "a\x00"},
        {"metadata": {"a": "\x00"}},
        {"metadata": {"\x00": "a"}},
        {"hyperparameters": {"sample_prompts": ["\x00"]}},
    ],
)
def test_a_nul_in_a_job(http: httpx2.Client, client: OpenAI, rows: Path, body: dict[str, Any]) -> None:
    file_id = client.files.create(file=rows, purpose="fine-tune").id
    answer = http.post(JOBS, json={"model": "tiny-gpt2", "training_file": file_id} | body)
    assert answer.status_code == 400, answer.text


def test_json_that_is_called_a_form_is_told_its_name(http: httpx2.Client) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    for content in (b'{"model": "tiny-gpt2"}', b"[]"):
        answer = http.post(JOBS, content=content, headers=form)
        assert answer.status_code == 400
        assert "Content-Type: application/json" in answer.json()["error"]["message"]
