"""POST /v1/chat/completions through the official SDK, sync and async, a real API and a real generator."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import torch
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from app.dataset import Chat
from app.encoding import Encoder
from app.generator import Generation
from tests.generation.conftest import Service
from tests.generation.tinymodel import CONTEXT
from worker.generation.answer import Answer
from worker.generation.model import Model
from worker.generation.request import Ended, Event, Scored, Ticket, Written

ASKED: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Serve with what?"},
]
CALL: dict[str, Any] = {"model": "tiny", "messages": ASKED, "max_completion_tokens": 12, "seed": 7}
CHATML = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools, please') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def service(nearby: Service) -> Service:
    return nearby


@pytest.fixture(scope="module", autouse=True)
def templated(folder: Path) -> Iterator[None]:
    """The same weights with a chat template of their own."""
    other = folder.parent / "templated"
    shutil.copytree(folder, other)
    (other / "chat_template.jinja").write_text(CHATML)
    yield
    shutil.rmtree(other)


def greedy(reference: Any, folder: Path, messages: list[Any], tokens: int) -> str:
    """What transformers alone writes after the prompt that training would have made."""
    encoder = Encoder.load(folder)
    answered = encoder.encode([Chat(1, [*messages, {"role": "assistant", "content": "x"}])])[0]
    inputs = torch.tensor([answered.ids[: answered.trained[0][0]]])
    written = reference.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    text: str = encoder.tokenizer.decode(written[0, inputs.shape[1] :].tolist())
    return text


@pytest.mark.parametrize("name", ["tiny", "templated"])
def test_a_greedy_answer_is_what_the_trained_model_says(
    client: OpenAI, reference: Any, folder: Path, name: str
) -> None:
    done = client.chat.completions.create(**CALL | {"model": name}, temperature=0)
    (choice,) = done.choices
    expected = greedy(reference, folder.parent / name, ASKED, 12)
    assert choice.message.content == (expected.removeprefix(" ") if name == "tiny" else expected)


def test_the_whole_answer_has_every_field_of_the_wire(service: Service) -> None:
    with service.http() as http:
        answer = http.post("/v1/chat/completions", json=CALL).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    (choice,) = answer["choices"]
    assert choice["logprobs"] is None
    assert choice["message"] == {
        "role": "assistant",
        "content": choice["message"]["content"],
        "refusal": None,
    }
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer["system_fingerprint"]
    ChatCompletion.model_validate(answer, strict=True)


def test_parts_developers_and_nulls_read_as_their_plain_selves(client: OpenAI) -> None:
    parts: list[Any] = [
        {"role": "developer", "content": "Be brief.", "name": None},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Serve with "}, {"type": "text", "text": "what?"}],
        },
    ]
    plain = client.chat.completions.create(**CALL)
    assert client.chat.completions.create(**CALL | {"messages": parts}).choices == plain.choices


def test_an_answer_can_be_sent_back_as_it_came(client: OpenAI) -> None:
    done = client.chat.completions.create(**CALL)
    said: Any = done.choices[0].message
    again = client.chat.completions.create(
        **CALL | {"messages": [*ASKED, said, {"role": "user", "content": "Really?"}]}
    )
    assert done.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens > done.usage.prompt_tokens + 3


def test_tokens_are_scored_with_their_bytes(client: OpenAI) -> None:
    done = client.chat.completions.create(**CALL, temperature=0, logprobs=True, top_logprobs=20)
    (choice,) = done.choices
    assert choice.logprobs is not None
    scored = choice.logprobs.content or []
    assert b"".join(bytes(each.bytes or []) for each in scored).decode(errors="replace").removeprefix(
        " "
    ) == (choice.message.content)
    for each in scored:
        assert len(each.top_logprobs) == 20
        assert each.top_logprobs[0].bytes == each.bytes
        assert each.top_logprobs[0].logprob == each.logprob
    bare = client.chat.completions.create(**CALL, temperature=0, logprobs=True)
    assert bare.choices[0].logprobs is not None
    assert [each.top_logprobs for each in bare.choices[0].logprobs.content or []] == [[]] * len(scored)


def test_a_stream_carries_the_same_as_the_whole_in_the_order_of_the_wire(service: Service) -> None:
    body = CALL | {"n": 2, "logprobs": True, "top_logprobs": 2}
    with service.http() as http:
        whole = http.post("/v1/chat/completions", json=body).json()
        options = {"include_usage": True, "include_obfuscation": True}
        text = http.post("/v1/chat/completions", json=body | {"stream": True, "stream_options": options}).text
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert [chunk["usage"] for chunk in chunks] == [None] * (len(chunks) - 1) + [whole["usage"]]
    assert chunks.pop()["choices"] == []
    assert chunks[0]["choices"][0]["index"] == 0
    for choice in whole["choices"]:
        mine = [each for chunk in chunks for each in chunk["choices"] if each["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert mine[-1]["delta"] == {}
        assert [each["finish_reason"] for each in mine] == [None] * (len(mine) - 1) + [
            choice["finish_reason"]
        ]
        assert [list(each["delta"]) for each in mine[1:-1]] == [["content"]] * (len(mine) - 2)
        assert "".join(each["delta"]["content"] for each in mine[:-1]) == choice["message"]["content"]
        scored = [token for each in mine for token in (each["logprobs"] or {}).get("content", [])]
        assert scored == choice["logprobs"]["content"]


def test_the_collecting_helper_ends_with_the_whole_message(client: OpenAI) -> None:
    text = client.chat.completions.create(**CALL).choices[0].message.content or ""
    options = CALL | {"stop": text[4:6]}  # so that it does not end for want of tokens, which is an error
    whole = client.chat.completions.create(**options)
    assert whole.choices[0].message.content
    with client.chat.completions.stream(**options) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content == whole.choices[0].message.content


async def test_the_async_client_gets_the_same(service: Service, client: OpenAI) -> None:
    whole = client.chat.completions.create(**CALL)
    async with AsyncOpenAI(base_url=f"{service.url}/v1", api_key=service.key, max_retries=0) as other:
        assert (await other.chat.completions.create(**CALL)).choices == whole.choices
        text = ""
        async for chunk in await other.chat.completions.create(**CALL, stream=True):
            assert chunk.usage is None
            text += chunk.choices[0].delta.content or ""
        with pytest.raises(openai.LengthFinishReasonError):
            async with other.chat.completions.stream(**CALL) as stream:
                await stream.get_final_completion()
    assert text == whole.choices[0].message.content


def test_a_model_does_not_run_on_into_the_users_turn(model: Model) -> None:
    request = Generation(source="", name="", messages=ASKED, max_tokens=60, stream=True)
    answer = Answer(request, model)
    (ask,) = answer.asks
    heard: list[Event] = []
    ticket = Ticket(ask, heard.extend)
    written = [Written(0, Scored(token)) for token in model.vocabulary.encode(" Bread.\n\nUser: And")]
    pieces = [piece for event in written for piece in answer.hear(0, [event], ticket)]
    assert "".join(piece["text"] for piece in pieces) == "Bread."
    assert pieces[-1]["finish_reason"] == "stop"
    assert not ticket.wants(0)
    assert list(answer.hear(0, [Ended(0, "length")], ticket)) == []


class Dish(BaseModel):
    """A schema as users of the SDK write one."""

    name: str
    kind: Literal["soup", "sauce"]
    minutes: int | None


@pytest.mark.parametrize("name", ["tiny", "templated"])
def test_any_model_answers_json(client: OpenAI, name: str) -> None:
    call: dict[str, Any] = CALL | {"model": name, "max_completion_tokens": 30, "n": 3}
    for done in (
        client.chat.completions.create(**call, response_format={"type": "json_object"}),
        client.chat.completions.create(**call | {"seed": 1}, response_format={"type": "json_object"}),
    ):
        values = [json.loads(choice.message.content or "") for choice in done.choices]
        assert all(isinstance(value, dict) for value in values)
        assert {choice.finish_reason for choice in done.choices} <= {"stop", "length"}


def test_whatever_a_model_wrote_can_be_sent_back(client: OpenAI, folder: Path) -> None:
    nul = Encoder.load(folder).tokenizer.encode("\0").ids[0]
    call: dict[str, Any] = CALL | {"logit_bias": {str(nul): 100}, "max_completion_tokens": 2}
    said = client.chat.completions.create(**call).choices[0].message
    assert said.content == "\0\0"
    more = [*ASKED, said.model_dump(), {"role": "user", "content": [{"type": "text", "text": "\0?"}]}]
    assert client.chat.completions.create(**CALL | {"messages": more}).choices
    done = client.completions.create(model="tiny", prompt="Serve\0", max_tokens=1, echo=True)
    assert done.choices[0].text.startswith("Serve\0")


async def test_an_answer_is_parsed_into_the_class_its_schema_came_from(
    service: Service, client: OpenAI
) -> None:
    call: dict[str, Any] = CALL | {"max_completion_tokens": 90, "logit_bias": {"2": 3}}
    dishes = []
    for seed in range(20):
        try:
            done = client.chat.completions.parse(**call | {"seed": seed}, response_format=Dish)
        except openai.LengthFinishReasonError as error:
            Dish.model_validate_json(error.completion.choices[0].message.content or "")
            continue
        dishes.append(done.choices[0].message.parsed)
        async with (
            AsyncOpenAI(base_url=f"{service.url}/v1", api_key=service.key) as other,
            other.chat.completions.stream(**call | {"seed": seed}, response_format=Dish) as stream,
        ):
            final = await stream.get_final_completion()
        assert final.choices[0].message.parsed == dishes[-1]
        break
    assert isinstance(dishes[-1], Dish)


def test_json_of_a_seed_is_the_same_alone_and_in_a_crowd(client: OpenAI) -> None:
    call: dict[str, Any] = CALL | {"response_format": {"type": "json_object"}, "max_completion_tokens": 40}
    alone = [client.chat.completions.create(**call | {"seed": seed}).choices for seed in range(3)]
    streams = [client.chat.completions.create(**CALL, stream=True) for _ in range(3)]
    crowd = [client.chat.completions.create(**call | {"seed": seed}).choices for seed in range(3)]
    for stream in streams:
        assert list(stream)
    assert alone == crowd


REFUSALS: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "cook", "content": "x"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages.0", "invalid_value"),
    ({"messages": [{"role": "user", "content": []}]}, "messages.0.content", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages.0.content",
        "invalid_value",
    ),
    ({"messages": [{"role": "user", "content": "x", "text": "y"}]}, "messages.0.text", "unknown_parameter"),
    ({"messages": [{"role": "user", "content": "word " * 200}]}, "messages", "context_length_exceeded"),
    ({"model": "templated", "messages": [{"role": "tool", "content": "x"}]}, "messages", "invalid_value"),
    ({"max_completion_tokens": CONTEXT}, "max_completion_tokens", "context_length_exceeded"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ({"max_tokens": 13}, "max_tokens", "invalid_value"),
    ({"temperature": 2.5}, "temperature", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"stop": ["a"] * 5}, "stop", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"function_call": {"name": "f"}}, "function_call", "unsupported_parameter"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"audio": {"voice": "ash", "format": "wav"}}, "audio", "unsupported_parameter"),
    ({"web_search_options": {"search_context_size": "low"}}, "web_search_options", "unsupported_parameter"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"not": {"type": "string"}}, "strict": True},
            }
        },
        "response_format",
        "unsupported_response_format",
    ),
    ({"tools": json.loads("[" * 700 + "]" * 700)}, None, "invalid_value"),
    ({"massages": []}, "massages", "unknown_parameter"),
]


@pytest.mark.parametrize(("extra", "param", "code"), REFUSALS, ids=lambda value: str(value)[:40])
def test_what_cannot_be_done_is_refused_by_name(
    service: Service, extra: dict[str, Any], param: str | None, code: str
) -> None:
    with service.http() as http:
        for stream in (False, True):
            answer = http.post("/v1/chat/completions", json=CALL | extra | {"stream": stream})
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


def test_a_keyword_that_cannot_be_kept_is_named(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=r"response_format.*uniqueItems"):
        client.chat.completions.create(**CALL, response_format=form)


def test_what_changes_no_text_is_taken_and_changes_nothing(client: OpenAI) -> None:
    plain = client.chat.completions.create(**CALL)
    ignored: dict[str, Any] = {
        "user": "me",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "reasoning_effort": "high",
        "verbosity": "low",
        "prediction": {"type": "content", "content": "x"},
        "modalities": ["text"],
        "safety_identifier": "x",
        "prompt_cache_key": "x",
        "prompt_cache_options": {"mode": "implicit"},
        "prompt_cache_retention": "24h",
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "function_call": "none",
        "response_format": {"type": "text"},
        "max_tokens": 12,
    }
    assert client.chat.completions.create(**CALL, **ignored).choices == plain.choices
    tools: Any = [{"type": "function", "function": {"name": "f"}}]
    assert client.chat.completions.create(**CALL, tools=tools, tool_choice="none").choices == plain.choices
    nulls = dict.fromkeys([*ignored, "temperature", "top_p", "n", "stop", "stream", "logprobs", "tools"])
    assert client.chat.completions.create(**CALL, extra_body=nulls).choices == plain.choices


def test_our_own_knobs_work_as_in_completions(client: OpenAI) -> None:
    certain = client.chat.completions.create(**CALL, temperature=0)
    for knob in ({"top_k": 1}, {"min_p": 1.0}):
        assert client.chat.completions.create(**CALL, extra_body=knob).choices == certain.choices
    assert (
        client.chat.completions.create(**CALL, temperature=0, extra_body={"repetition_penalty": 5.0}).choices
        != certain.choices
    )


def test_without_a_limit_the_answer_ends_where_the_context_does(client: OpenAI) -> None:
    done = client.chat.completions.create(model="tiny", messages=ASKED, logit_bias={"0": -100})
    assert done.usage is not None
    assert done.usage.total_tokens == CONTEXT
    assert done.choices[0].finish_reason == "length"


def test_a_conversation_that_fills_the_context_is_told_with_its_own_numbers(client: OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 200}]
    with pytest.raises(openai.BadRequestError, match=r"Shorten the messages\.$") as refused:
        client.chat.completions.create(model="tiny", messages=long)
    context, total, read, written = map(int, re.findall(r"\d+", refused.value.message)[1:])
    assert (context, total, written) == (CONTEXT, read + 1, 1)
    assert read > CONTEXT
    assert refused.value.param == "messages"


def test_a_model_deleted_while_it_answers_answers_to_the_end(client: OpenAI, folder: Path) -> None:
    doomed = folder.parent / "doomed"
    shutil.copytree(folder, doomed)
    call: dict[str, Any] = {"messages": ASKED, "seed": 3, "logit_bias": {"0": -100}}
    expected = client.chat.completions.create(model="tiny", **call).choices[0].message.content
    stream = client.chat.completions.create(model="doomed", **call, stream=True)
    text = next(stream).choices[0].delta.content or ""
    shutil.rmtree(doomed)
    text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == expected
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="doomed", **call)
