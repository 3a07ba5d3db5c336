"""Several generators, and other servers instead of one: which is asked, and what happens when it cannot."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from app.errors import ServiceError, TooMany, Unavailable
from app.fleet import Fleet
from app.generator import Generation
from app.settings import Settings
from tests.generation.conftest import Member, Service, generating, serving

CALL: dict[str, Any] = {"model": "tiny", "prompt": "Serve with bread", "seed": 3, "max_tokens": 20}
LONG: dict[str, Any] = {"model": "tiny", "prompt": ["a"] * 8, "n": 64, "max_tokens": 100}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def service(nearby: Service) -> Service:
    return nearby


@pytest.fixture
def members(folder: Path, socket_folder: Path) -> Iterator[list[Member]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(generating(socket_folder / f"member-{number}.sock", folder.parent, queue=1))
            for number in range(2)
        ]


async def written(fleet: Fleet, **options: Any) -> list[Any]:
    source = options.pop("source", "folder:tiny")
    generation = Generation(source=source, name="tiny", prompts=["a"], stream=True, **options)
    return [line async for line in fleet.lines(generation)]


async def test_a_model_stays_with_one_generator_and_leaves_it_when_that_is_full_or_gone(
    members: list[Member],
) -> None:
    fleet = Fleet([member.url for member in members])
    for _ in range(3):
        assert await written(fleet)
    used = [member for member in members if member.health()["models"]]
    assert len(used) == 1
    (other,) = [member for member in members if member not in used]

    # Full: a second request spills over, a third finds no room at all.
    long = {"max_tokens": 120, "n": 200, "best_of": 200, "logit_bias": {0: -100}}
    begun = [fleet.lines(Generation(source="folder:tiny", name="tiny", prompts=["a"], stream=True, **long))
             for _ in range(2)]  # fmt: skip
    for lines in begun:
        assert await anext(lines)
    assert [len(member.health()["models"]) for member in members] == [1, 1]
    with pytest.raises(TooMany):
        await written(fleet)
    for lines in begun:
        await lines.aclose()
    await asyncio.to_thread(until, lambda: not any(member.health()["answering"] for member in members))

    # Gone: the other one takes all, and says itself what is wrong with a request.
    await asyncio.to_thread(used[0].stop)
    assert await written(fleet)
    with pytest.raises(ServiceError) as refused:
        await written(fleet, source="folder:none")
    assert refused.value.code == "model_not_found"
    await asyncio.to_thread(other.stop)
    with pytest.raises(Unavailable):
        await written(fleet)
    await fleet.close()


async def test_an_answer_that_has_begun_is_not_begun_again_elsewhere(members: list[Member]) -> None:
    fleet = Fleet([member.url for member in members])
    long = {"max_tokens": 120, "n": 200, "best_of": 200, "logit_bias": {0: -100}}
    lines = fleet.lines(Generation(source="folder:tiny", name="tiny", prompts=["a"], stream=True, **long))
    assert await anext(lines)
    (used,) = [member for member in members if member.health()["answering"]]
    await asyncio.to_thread(used.stop)
    with pytest.raises(ServiceError):
        async for _ in lines:
            pass
    assert all(not member.health()["answering"] for member in members if member is not used)
    await fleet.close()


def test_one_generator_more_moves_only_its_share_of_the_models() -> None:
    few, more = Fleet(["http://a:1", "http://b:1"]), Fleet(["http://a:1", "http://b:1", "http://c:1"])
    moved = 0
    for number in range(300):
        before, after = (fleet._order(f"store:{number}")[0].url for fleet in (few, more))
        assert after in (before, "http://c:1")
        moved += after != before
    assert 60 < moved < 140


def test_no_generator_at_all_is_503(service: Service) -> None:
    settings = service.settings.model_copy(update={"generator_url": None})
    with serving(settings) as url, OpenAI(base_url=f"{url}/v1", api_key=service.key, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as refused:
            client.completions.create(**CALL)
        assert refused.value.code == "generator_unavailable"


@pytest.fixture(scope="module")
def cutter() -> Iterator[str]:
    """A server that breaks off in the middle of a stream, which ours never does by itself."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    event = b'data: {"choices":[]}\n\n'

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(head + f"{len(event):x}\r\n".encode() + event + b"\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(20)


@pytest.fixture(scope="module")
def front(service: Service, cutter: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API without a generator of its own that knows `service`, an OpenAI-compatible server, instead."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    settings = Settings(
        home=tmp_path_factory.mktemp("front"),
        database_url=service.settings.database_url,
        redis_url=service.settings.redis_url,
        base_models=service.settings.base_models,
        min_free_bytes=0,
        upstreams={
            "tiny": {"url": f"{service.url}/v1/", "key": service.key},
            "gpt2": {"url": f"{service.url}/v1", "key": service.key, "model": "tiny"},
            "distilgpt2": {"url": f"{service.url}/v1", "key": "of another house", "model": "tiny"},
            "gpt2-large": cutter,
            "gpt2-xl": nowhere,
        },
    )
    with serving(settings) as url:
        yield Service(url, service.key, settings)


@pytest.mark.parametrize("name", ["tiny", "gpt2"])
def test_what_another_server_says_comes_through_as_it_is(front: Service, client: OpenAI, name: str) -> None:
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "seed": 1}
    with front.client() as through:
        assert through.completions.create(**CALL | {"model": name}).choices == (
            client.completions.create(**CALL).choices
        )
        answer = through.chat.completions.create(model=name, **chat)
        assert answer.choices == client.chat.completions.create(model="tiny", **chat).choices
        assert answer._request_id
        chunks = list(through.chat.completions.create(model=name, **chat, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (
        answer.choices[0].message.content
    )
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_what_another_server_refuses_is_refused_in_its_words(front: Service) -> None:
    with front.client() as through, pytest.raises(openai.BadRequestError, match="context") as refused:
        through.completions.create(**CALL | {"max_tokens": 900})
    assert refused.value.code == "context_length_exceeded"


async def test_the_async_client_streams_through_as_well(front: Service, client: OpenAI) -> None:
    async with AsyncOpenAI(base_url=f"{front.url}/v1", api_key=front.key) as through:
        stream = await through.completions.create(**CALL, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == client.completions.create(**CALL).choices[0].text


@pytest.mark.parametrize("name", ["gpt2-xl", "distilgpt2"])
def test_a_server_that_is_away_or_does_not_know_us_is_503(front: Service, name: str) -> None:
    with front.client() as through, pytest.raises(openai.InternalServerError) as refused:
        through.completions.create(**CALL | {"model": name})
    assert (refused.value.status_code, refused.value.code) == (503, "upstream_unavailable")
    assert refused.value.response.headers["retry-after"]


def test_another_owners_model_is_404_before_any_server_is_asked(front: Service) -> None:
    with front.client() as through, pytest.raises(openai.NotFoundError):
        through.completions.create(**CALL | {"model": "nobody's"})


def test_a_client_that_leaves_stops_the_other_server_too(front: Service, service: Service) -> None:
    with front.client() as through:
        stream = through.completions.create(**LONG, stream=True)
        next(iter(stream))
        assert service.health()["answering"] == 1
        stream.close()
        until(lambda: service.health()["answering"] == 0)
        with through.with_options(timeout=0.5) as hasty, pytest.raises(openai.APITimeoutError):
            hasty.completions.create(**LONG)
        until(lambda: service.health()["answering"] == 0)


def test_a_server_that_breaks_off_is_told_in_the_stream(front: Service) -> None:
    with front.client() as through:
        stream = through.completions.create(**CALL | {"model": "gpt2-large"}, stream=True)
        with pytest.raises(openai.APIError) as broken:
            list(stream)
    assert broken.value.code == "upstream_unavailable"
