"""Chat with models that were really trained on messages, by the whole service; and its generator killed."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.fine_tuning import FineTuningJob

from tests.flow.stack import Stack, wait_for, wait_for_end

TAUGHT = {
    "How long does rice take?": "Twelve minutes.",
    "And pasta?": "Nine, in salted water.",
    "What goes with soup?": "Bread and butter.",
}
ROWS = "".join(
    json.dumps(
        {
            "messages": [
                {"role": "system", "content": "You are a cook."},
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
    )
    + "\n"
    for question, answer in TAUGHT.items()
)


def trained(client: OpenAI, **hyperparameters: Any) -> FineTuningJob:
    file = client.files.create(file=("chat.jsonl", ROWS.encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny-gpt2",
        training_file=file.id,
        extra_body={"hyperparameters": {"total_train_batch_size": 3, **hyperparameters}},
    )
    ended = wait_for_end(client, job.id)
    assert ended.status == "succeeded", ended.error
    return ended


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[OpenAI]:
    with stack.client() as client:
        yield client


@pytest.fixture(scope="module")
def cook(client: OpenAI) -> str:
    job = trained(client, num_epochs=120, learning_rate=2e-3, lr_scheduler_type="cosine")
    assert job.fine_tuned_model is not None
    return job.fine_tuned_model


def ask(model: str, question: str) -> dict[str, Any]:
    messages = [{"role": "developer", "content": "You are a cook."}, {"role": "user", "content": question}]
    return {"model": model, "messages": messages, "temperature": 0, "max_completion_tokens": 40}


def generator_of(stack: Stack) -> int:
    """The process id of the generator among the children of `finetuned up`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(parent) == stack.process.pid and b"worker.generation" in command:
                return int(entry.name)
    raise AssertionError("no generator")


def test_a_model_says_what_it_was_taught_and_stops(client: OpenAI, cook: str) -> None:
    for question, answer in TAUGHT.items():
        done = client.chat.completions.create(**ask(cook, question))
        assert done.choices[0].message.content == answer
        assert done.choices[0].finish_reason == "stop"


async def test_it_says_the_same_to_the_async_client_word_by_word(stack: Stack, cook: str) -> None:
    async with (
        AsyncOpenAI(base_url=f"{stack.url}/v1", api_key=stack.key) as other,
        other.chat.completions.stream(**ask(cook, "And pasta?")) as stream,
    ):
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == TAUGHT["And pasta?"]


def test_lora_models_and_checkpoints_share_the_base_in_the_generators_memory(
    stack: Stack, client: OpenAI
) -> None:
    job = trained(client, lora_rank=4, num_epochs=2)
    (checkpoint, *_) = client.fine_tuning.jobs.checkpoints.list(job.id).data
    base = client.chat.completions.create(**ask("tiny-gpt2", "And pasta?"))
    for name in (job.fine_tuned_model or "", checkpoint.fine_tuned_model_checkpoint):
        done = client.chat.completions.create(**ask(name, "And pasta?"))
        assert done.system_fingerprint != base.system_fingerprint
    sockets = (stack.home / "sockets").read_text().strip()
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=f"{sockets}/generator.sock")) as inside:
        sources = [each["source"] for each in inside.get("http://generator/health").json()["models"]]
    assert "builtin:tiny-gpt2" in sources
    assert len([source for source in sources if source.startswith("builtin:tiny-gpt2 + store:")]) == 2


def test_a_hub_model_that_was_never_fetched_is_404_and_says_what_to_do(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="FINETUNED_BASE_MODELS") as refused:
        client.chat.completions.create(**ask("distilgpt2", "Hello"))
    assert refused.value.code == "model_not_found"


def test_a_generator_that_is_killed_comes_back_by_itself(stack: Stack, client: OpenAI, cook: str) -> None:
    before = generator_of(stack)
    stream = client.chat.completions.create(
        **ask(cook, "And pasta?") | {"n": 100, "temperature": 2, "max_completion_tokens": 200},
        logit_bias={"0": -100},
        stream=True,
    )
    next(stream)
    os.kill(before, signal.SIGKILL)
    with pytest.raises(openai.APIError):
        list(stream)
    refusals: list[openai.InternalServerError] = []

    def answers_again() -> bool:
        try:
            done = client.chat.completions.create(**ask(cook, "And pasta?"))
        except openai.InternalServerError as error:
            refusals.append(error)
            return False
        return bool(done.choices[0].message.content == TAUGHT["And pasta?"])

    wait_for(answers_again, "the generator")
    assert {(each.status_code, each.code) for each in refusals} == {(503, "generator_unavailable")}
    assert all(each.response.headers["retry-after"] for each in refusals)
    assert generator_of(stack) != before
