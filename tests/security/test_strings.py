"""Strings that mean something to a shell, a template, a path or a terminal mean nothing here (S5)."""

from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.app.conftest import Api

CANARY = "finetuned-canary"
HOSTILE = (
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"; touch {CANARY} #",
    f"| touch {CANARY}",
    "{{ ''.__class__.__mro__ }}",
    "{% for i in range(10**9) %}{% endfor %}",
    "%(password)s {0.__class__}",
    "../../../../etc/passwd",
    "\u202egnp.exe",
    "'; DROP TABLE jobs; --",
    "-rf",
    "\x1b]0;title\x07",
    "a\0b",
    "x" * 1_000_000,
)
JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def file_id(api: Api) -> str:
    with api.client() as client:
        return client.files.create(file=("f.jsonl", b'{"text": "one two"}\n'), purpose="fine-tune").id


def bodies(file_id: str, text: str) -> list[tuple[str, dict[str, Any]]]:
    """Every string that a body of ours has, one at a time."""
    job = {"model": "tiny-gpt2", "training_file": file_id}
    found: list[tuple[str, dict[str, Any]]] = [
        (JOBS, job | {name: text})
        for name in ("model", "training_file", "validation_file", "suffix", "from_checkpoint", "priority")
    ]
    found += [
        (JOBS, job | {"metadata": {text: "v"}}),
        (JOBS, job | {"metadata": {"k": text}}),
        (JOBS, job | {"refuse_on": [text]}),
        (JOBS, job | {"method": {"type": text}}),
        (JOBS, job | {"hyperparameters": {text: 1}}),
        (JOBS, job | {"hyperparameters": {"optimizer": text, "lr_scheduler_type": text}}),
        (JOBS, job | {"hyperparameters": {"mixed_precision_training": text}}),
        (JOBS, job | {"hyperparameters": {"lora_target_modules": [text]}}),
        (JOBS, job | {"hyperparameters": {"sample_prompts": [text]}, "dry_run": True}),
        (JOBS, job | {"integrations": [{"type": text}]}),
        ("/v1/api_keys", {"name": text, "owner": text}),
        ("/v1/webhook_endpoints", {"name": text, "url": text, "event_types": [text]}),
        ("/v1/completions", {"model": text, "prompt": text}),
    ]
    return found


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:20]))
def test_a_hostile_string_is_refused_or_inert(api: Api, http: httpx2.Client, file_id: str, text: str) -> None:
    for path, body in bodies(file_id, text):
        answer = http.post(path, json=body)
        assert answer.status_code < 500 or answer.status_code == 503, (path, body, answer.text[:300])
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) >= {"message", "param", "code"}
            assert len(answer.content) < 10_000
    for folder in (Path.cwd(), Path.home(), Path("/tmp"), api.settings.home):
        assert not (folder / CANARY).exists()
