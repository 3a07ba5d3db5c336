"""POST /v1/completions through the official SDK, a real API and a real generator process."""

import json
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI

from app.link import PART
from tests.generation.conftest import Service
from tests.generation.tinymodel import CONTEXT, END, make_tokenizer

PROMPT = "Serve with bread"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def greedy(reference: Any, tokenizer: Any) -> Callable[[str | list[int], int], str]:
    """The text that transformers alone writes."""

    def write(prompt: str | list[int], tokens: int) -> str:
        ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        inputs = torch.tensor([ids])
        written = reference.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return str(tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True))

    return write


def test_a_greedy_completion_is_what_the_downloaded_model_writes(
    client: OpenAI, greedy: Callable[..., str]
) -> None:
    done = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=30)
    assert done.object == "text_completion"
    assert done.id.startswith("cmpl-")
    assert done.model == "tiny"
    assert abs(done.created - time.time()) < 60
    (choice,) = done.choices
    assert choice.text == greedy(PROMPT, 30)
    assert choice.logprobs is None
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_every_form_of_prompt_is_taken(client: OpenAI, greedy: Callable[..., str], tokenizer: Any) -> None:
    ids = tokenizer(PROMPT)["input_ids"]
    forms: list[tuple[Any, list[str | list[int]]]] = [
        (PROMPT, [PROMPT]),
        ([PROMPT, "rice"], [PROMPT, "rice"]),
        (ids, [ids]),
        ([ids, [7, 8]], [ids, [7, 8]]),
        (None, [[0]]),
        ("", [[0]]),
    ]
    for prompt, expected in forms:
        done = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=12)
        assert [choice.text for choice in done.choices] == [greedy(each, 12) for each in expected]
        assert [choice.index for choice in done.choices] == list(range(len(expected)))


def test_sixteen_tokens_are_written_unless_told_otherwise(client: OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt=PROMPT, logit_bias={"0": -100})
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (
        len(make_tokenizer()(PROMPT)["input_ids"]),
        16,
    )
    assert done.choices[0].finish_reason == "length"


def test_choices_of_several_prompts_are_numbered_flat(client: OpenAI) -> None:
    both = client.completions.create(model="tiny", prompt=["rice", "pie"], n=3, seed=5)
    alone = client.completions.create(model="tiny", prompt="pie", n=3, seed=5)
    assert [choice.index for choice in both.choices] == list(range(6))
    assert [choice.text for choice in both.choices[3:]] == [choice.text for choice in alone.choices]


def test_the_likeliest_of_best_of_candidates_are_given(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "seed": 3, "max_tokens": 8}
    candidates = client.completions.create(**options, n=6, logprobs=0).choices

    def likelihood(choice: Any) -> float:
        values: Any = choice.logprobs.token_logprobs  # the SDK's type knows no null
        return float(sum(values) / len(values)) if values else float("-inf")

    ranked = sorted(candidates, key=lambda choice: -likelihood(choice))
    best = client.completions.create(**options, best_of=6, n=2)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.choices[0].logprobs is None


def test_a_stream_carries_the_same_as_the_whole(client: OpenAI) -> None:
    options: dict[str, Any] = {
        "model": "tiny",
        "prompt": ["rice", "pie"],
        "n": 2,
        "seed": 11,
        "max_tokens": 30,
        "logprobs": 2,
        "echo": True,
        "stop": ["ea"],
    }
    whole = client.completions.create(**options)
    texts = dict.fromkeys(range(4), "")
    reasons: dict[int, str] = {}
    logprobs: dict[int, dict[str, list[Any]]] = {}
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        for choice in chunk.choices:
            assert choice.index not in reasons, "a chunk after the last one"
            texts[choice.index] += choice.text
            assert choice.logprobs is not None
            for name, values in choice.logprobs.model_dump().items():
                logprobs.setdefault(choice.index, {}).setdefault(name, []).extend(values)
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    for choice in whole.choices:
        assert choice.logprobs is not None
        assert logprobs[choice.index] == choice.logprobs.model_dump()
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_an_answer_of_megabytes_is_whole_and_each_choice_is_its_own(service: Service) -> None:
    """It travels in parts, and is sent in parts."""
    many = {
        "model": "tiny",
        "prompt": PROMPT,
        "n": 128,
        "max_tokens": 40,
        "seed": 5,
        "logprobs": 5,
        "echo": True,
    }
    with service.http() as http:
        answer, few = (http.post("/v1/completions", json=many | {"n": n}) for n in (128, 4))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert len(answer.content) == int(answer.headers["content-length"]) > 2 * PART
    choices = answer.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(128))
    assert all(choice["finish_reason"] and choice["logprobs"]["tokens"] for choice in choices)
    assert choices[0]["text"] == few.json()["choices"][0]["text"]
    assert answer.json().keys() == few.json().keys()
    assert answer.json()["usage"]["completion_tokens"] > 128


def test_a_stream_is_nothing_but_data_lines_and_ends_with_done(service: Service) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5, "stream": True, "logit_bias": {"0": -100}}
    with service.http() as http:
        answer = http.post("/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert all("usage" not in chunk for chunk in chunks)
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]


def test_a_character_begun_by_the_prompt_and_ended_by_the_model_arrives_whole(
    client: OpenAI, tokenizer: Any
) -> None:
    *begun, last = tokenizer("\N{SMILING FACE WITH SUNGLASSES}")["input_ids"]
    chunks = client.completions.create(
        model="tiny", prompt=begun, echo=True, max_tokens=1, logit_bias={last: 100}, stream=True, logprobs=0
    )
    (choice,) = [chunk.choices[0] for chunk in chunks]
    assert choice.text == "\N{SMILING FACE WITH SUNGLASSES}"
    assert choice.logprobs is not None
    assert [name.startswith("bytes:\\x") for name in choice.logprobs.tokens or []] == [True] * (
        len(begun) + 1
    )


def test_the_end_token_ends_and_is_never_shown(client: OpenAI) -> None:
    done = client.completions.create(
        model="tiny", prompt=PROMPT, logit_bias={"0": 100}, logprobs=1, temperature=0
    )
    (choice,) = done.choices
    assert (choice.text, choice.finish_reason) == ("", "stop")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == []
    assert END not in done.to_json()


def test_echo_without_tokens_scores_the_prompt(client: OpenAI, reference: Any, tokenizer: Any) -> None:
    done = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    (choice,) = done.choices
    assert choice.text == PROMPT
    assert choice.finish_reason == "length"
    ids = tokenizer(PROMPT)["input_ids"]
    with torch.inference_mode():
        expected = reference(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert choice.logprobs is not None
    values: Any = choice.logprobs.token_logprobs  # the SDK's type knows no null
    assert values[0] is None
    assert values[1:] == pytest.approx(
        [float(expected[place, token]) for place, token in enumerate(ids[1:])], abs=1e-4
    )
    assert choice.logprobs.tokens == [tokenizer.decode([token]) for token in ids]
    offsets = choice.logprobs.text_offset or []
    assert all(map(str.startswith, [PROMPT[offset:] for offset in offsets], choice.logprobs.tokens))


def test_a_temperature_next_to_nothing_takes_the_likeliest_and_breaks_no_batch(
    client: OpenAI, greedy: Callable[..., str]
) -> None:
    for options in ({}, {"top_p": 0.9}, {"extra_body": {"top_k": 5}}):
        given: dict[str, Any] = {"temperature": 1e-40, **options}
        done = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=10, **given)
        assert done.choices[0].text == greedy(PROMPT, 10)


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"temprature": 1}, "temprature", "unknown_parameter"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": True}, "n", "invalid_value"),
    ({"n": 3, "best_of": 2}, "best_of", "invalid_value"),
    ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
    ({"best_of": 21}, "best_of", "invalid_value"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"max_tokens": CONTEXT}, "max_tokens", "context_length_exceeded"),
    ({"prompt": "word " * 200}, "prompt", "context_length_exceeded"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [1, "two"]}, "prompt", "invalid_value"),
    ({"prompt": [99999]}, "prompt", "invalid_value"),
    ({"prompt": {"text": "x"}}, "prompt", "invalid_value"),
    ({"logprobs": 6}, "logprobs", "invalid_value"),
    ({"stop": ["a"] * 5}, "stop", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"suffix": "the end"}, "suffix", "unsupported_parameter"),
    ({"logit_bias": {"0": 101}}, "logit_bias.0", "invalid_value"),
    ({"logit_bias": {"word": 1}}, "logit_bias", "invalid_value"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_value"),
    ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"repetition_penalty": 1e-40}, "repetition_penalty", "invalid_value"),
    ({"min_p": 1.1}, "min_p", "invalid_value"),
    ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
]


@pytest.mark.parametrize(("extra", "param", "code"), REFUSALS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_option_is_refused_by_name(
    service: Service, extra: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    with service.http() as http:
        answer = http.post(
            "/v1/completions", json={"model": "tiny", "prompt": PROMPT, "stream": stream} | extra
        )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code)


def test_a_misspelt_option_is_told_its_right_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'temperature'"):
        client.completions.create(model="tiny", prompt=PROMPT, extra_body={"temprature": 1})


def test_what_does_not_fit_is_told_with_the_numbers(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=rf"{CONTEXT} tokens, and 133 .* 3 in .* 130 to"):
        client.completions.create(model="tiny", prompt=[1, 2, 3], max_tokens=130)
    several = [[1, 2, 3], [5] * (CONTEXT + 1), [4]]
    with pytest.raises(
        openai.BadRequestError, match=rf"{CONTEXT + 1} in prompt\[1\].* Shorten prompt\[1\]\."
    ):
        client.completions.create(model="tiny", prompt=several, max_tokens=5)


def test_what_can_never_fit_is_refused_before_it_keeps_others_waiting(client: OpenAI) -> None:
    huge = "rice " * 3_000_000
    said: Any = [{"role": "user", "content": huge}]
    began = time.monotonic()
    for ask in (
        lambda: client.completions.create(model="tiny", prompt=["a", huge]),
        lambda: client.chat.completions.create(model="tiny", messages=said),
    ):
        with pytest.raises(openai.BadRequestError, match=rf"{CONTEXT} tokens.* 15000000 characters") as told:
            ask()
        assert told.value.code == "context_length_exceeded"
    assert time.monotonic() - began < 20, "it was sent, and not encoded: that takes a minute"


def test_the_default_length_is_shortened_to_what_fits(client: OpenAI) -> None:
    done = client.completions.create(model="tiny", prompt=[5] * (CONTEXT - 4), logit_bias={"0": -100})
    assert done.usage is not None
    assert done.usage.completion_tokens == 4


def test_null_and_ignored_options_change_nothing(client: OpenAI) -> None:
    absent = dict.fromkeys(
        ["best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "n", "presence_penalty", "stop"]
    )
    options: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "seed": 1}
    plain = client.completions.create(**options)
    absent |= dict.fromkeys(["suffix", "temperature", "max_tokens", "stream", "stream_options"])
    nulls = client.completions.create(**options, extra_body={**absent, "user": "me"})
    assert nulls.choices == plain.choices


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_404(client: OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.completions.create(model="no-such-model", prompt=PROMPT, stream=stream)
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_many_clients_at_once_get_what_they_would_get_alone(client: OpenAI) -> None:
    def ask(seed: int) -> str:
        done = client.completions.create(model="tiny", prompt=PROMPT, seed=seed, max_tokens=40)
        return done.choices[0].text

    alone = [ask(seed) for seed in range(24)]
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, range(24))) == alone


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


LONG: dict[str, Any] = {"model": "tiny", "prompt": ["a"] * 16, "n": 128, "max_tokens": 100}


def test_a_client_that_leaves_a_stream_stops_the_generation(service: Service, client: OpenAI) -> None:
    stream = client.completions.create(**LONG, stream=True)
    next(iter(stream))
    assert service.health()["answering"] == 1
    stream.close()
    _until(lambda: service.health()["answering"] == 0)


def test_a_client_that_gives_up_waiting_stops_the_generation(service: Service) -> None:
    with service.client().with_options(timeout=0.5) as hasty, pytest.raises(openai.APITimeoutError):
        hasty.completions.create(**LONG)
    _until(lambda: service.health()["answering"] == 0)


def test_a_full_queue_is_429_and_no_connection_of_the_database_is_held(service: Service) -> None:
    # More requests at a time than the database pool has connections (20), and than the queue takes (40).
    started = threading.Barrier(60)
    leave = threading.Event()

    def ask(client: OpenAI) -> int:
        started.wait(30)
        try:
            with client.completions.create(**{**LONG, "prompt": "a"}, stream=True) as stream:
                next(iter(stream))
                leave.wait(30)
            return 200
        except openai.RateLimitError as error:
            return error.status_code if error.response.headers["retry-after"] else 0

    with service.client() as client, ThreadPoolExecutor(60) as pool:
        asked = [pool.submit(ask, client) for _ in range(60)]
        _until(lambda: sum(each.done() for each in asked) >= 20)
        assert client.models.list().data
        leave.set()
        statuses = sorted(each.result(60) for each in asked)
    assert statuses == [200] * 40 + [429] * 20
    _until(lambda: service.health()["answering"] == 0)


def test_a_generator_that_dies_is_503_until_it_is_back(service: Service, client: OpenAI) -> None:
    hello: Any = [{"role": "user", "content": "Hello"}]
    streams: list[Any] = [
        client.completions.create(**LONG, stream=True),
        client.chat.completions.create(
            model="tiny", messages=hello, n=64, logit_bias={"0": -100}, stream=True
        ),
    ]
    for stream in streams:
        next(stream)
    service.kill_generator()
    for stream in streams:
        with pytest.raises(openai.APIError) as broken:
            list(stream)
        assert not isinstance(broken.value, openai.APIStatusError)
        assert broken.value.code == "generator_unavailable"
    for wants_stream in (False, True):
        with pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(model="tiny", prompt=PROMPT, stream=wants_stream)
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"]
    service.start_generator()
    assert client.completions.create(model="tiny", prompt=PROMPT).choices


def test_a_generator_told_to_stop_ends_what_it_has_begun_and_complains_of_nothing(
    service: Service, client: OpenAI
) -> None:
    with ThreadPoolExecutor() as pool:
        begun = pool.submit(lambda: client.completions.create(**LONG | {"prompt": "a"}))
        _until(lambda: service.health()["answering"] == 1)
        assert service.kill_generator(signal.SIGTERM) == 0
        assert len(begun.result(60).choices) == 128
