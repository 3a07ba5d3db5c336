"""Which exception of the SDK a failure becomes, what it tells, and what the SDK does on its own after it."""

from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.app.conftest import Api
from tests.conformance.conftest import Client

JOBS = "fine_tuning.jobs"


def test_bad_input_is_a_bad_request_that_names_the_field(call: Client, file_id: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        call(
            f"{JOBS}.create",
            model="tiny-gpt2",
            training_file=file_id,
            extra_body={"hyperparameters": {"lr": 1}},
        )
    error = refused.value
    assert (error.param, error.code, error.type) == (
        "hyperparameters.lr",
        "unknown_parameter",
        "invalid_request_error",
    )
    assert "learning_rate" in error.message
    assert error.request_id == call.answers[-1].headers["x-request-id"]


@pytest.mark.parametrize(
    ("name", "given"),
    [("models.retrieve", "gpt-9"), ("files.retrieve", "file-nope"), (f"{JOBS}.retrieve", "ftjob-nope")],
)
def test_what_is_not_there_is_not_found(call: Client, name: str, given: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        call(name, given)
    assert refused.value.code


@pytest.mark.parametrize(
    "asked",
    [
        {"model": 5},
        {"model": "gpt-9"},
        {"training_file": "file-nope"},
        {"seed": "abc"},
        {"suffix": "x" * 65},
        {"metadata": {"a": 1}},
        {"metadata": {"k" * 65: "v"}},
        {"metadata": {str(n): "v" for n in range(17)}},
        {"hyperparameters": {"n_epochs": 0}},
        {"hyperparameters": {"batch_size": 257}},
        {"hyperparameters": {"learning_rate_multiplier": 0}},
        {"method": {"type": "magic"}},
        {"integrations": [{"type": "wandb"}]},
    ],
    ids=str,
)
def test_the_sdk_checks_nothing_so_we_do(call: Client, file_id: str, asked: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        call(f"{JOBS}.create", **{"model": "tiny-gpt2", "training_file": file_id, **asked})
    assert refused.value.param
    assert refused.value.code


@pytest.mark.parametrize("key", ["nonsense", "sk-" + "x" * 48, "ft_00000000_" + "A" * 43 + "_000000"])
def test_a_wrong_key_is_an_authentication_error(api: Api, call: Client, key: str) -> None:
    call.client.api_key = key
    with pytest.raises(openai.AuthenticationError) as refused:
        call("models.list")
    assert refused.value.code == "invalid_api_key"


class Forgetful:
    """Lets a request through and loses its answer, as often as it is told to."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.through = 0

    def lose(self, request: httpx2.Request) -> None:
        self.through += 1
        if self.through <= self.times:
            raise httpx2.ReadTimeout("lost on the way back", request=request)


class Line(Forgetful, httpx2.HTTPTransport):
    """The same for `OpenAI`."""

    def __init__(self, times: int) -> None:
        httpx2.HTTPTransport.__init__(self)
        Forgetful.__init__(self, times)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = super().handle_request(request)
        answer.read()
        self.lose(request)
        return answer


class AsyncLine(Forgetful, httpx2.AsyncHTTPTransport):
    """The same for `AsyncOpenAI`."""

    def __init__(self, times: int) -> None:
        httpx2.AsyncHTTPTransport.__init__(self)
        Forgetful.__init__(self, times)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = await super().handle_async_request(request)
        await answer.aread()
        self.lose(request)
        return answer


def of_file(client: OpenAI, file_id: str) -> int:
    return sum(job.training_file == file_id for job in client.fine_tuning.jobs.list(limit=100))


def test_a_create_whose_answers_are_lost_makes_one_job(api: Api, file_id: str) -> None:
    """It carries no key: the service has to know the SDK's own repetitions."""
    line = Line(times=2)
    with httpx2.Client(transport=line) as http:
        client = OpenAI(base_url=f"{api.url}/v1", api_key=api.key, http_client=http)
        job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file_id)
        assert line.through == 3
        assert of_file(client, file_id) == 1
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"


async def test_the_asynchronous_client_too(api: Api, file_id: str) -> None:
    line = AsyncLine(times=2)
    async with httpx2.AsyncClient(transport=line) as http:
        client = AsyncOpenAI(base_url=f"{api.url}/v1", api_key=api.key, http_client=http)
        await client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file_id)
    assert line.through == 3
    with api.client() as synchronous:
        assert of_file(synchronous, file_id) == 1


def test_a_cancel_whose_answer_is_lost_is_no_error(api: Api, file_id: str) -> None:
    with api.client() as client:
        job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file_id)
    with httpx2.Client(transport=Line(times=1)) as http:
        client = OpenAI(base_url=f"{api.url}/v1", api_key=api.key, http_client=http)
        assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"


def test_a_wrong_state_is_not_retried(api: Api, file_id: str) -> None:
    line = Line(times=0)
    with httpx2.Client(transport=line) as http:
        client = OpenAI(base_url=f"{api.url}/v1", api_key=api.key, http_client=http)
        job = client.fine_tuning.jobs.create(model="tiny-gpt2", training_file=file_id)
        with pytest.raises(openai.BadRequestError):
            client.fine_tuning.jobs.resume(job.id)
        assert line.through == 2, "409 would have been sent three times"
