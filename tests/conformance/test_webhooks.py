"""Webhook endpoints by either client of the SDK; their deliveries: tests/app/test_webhook_deliveries.py."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import openai
import pytest

from app.webhooks.event import TYPES
from tests.app.receiver import Receiver, receiving
from tests.conformance.conftest import Client


@pytest.fixture(scope="module")
def more_settings() -> dict[str, Any]:
    return {"webhook_allow": (ip_network("127.0.0.0/8"),)}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def test_an_endpoints_life(call: Client, receiver: Receiver) -> None:
    url = f"{receiver.url}/{type(call).__name__}"
    made = call("webhooks.create", name="ci", url=url, event_types=list(TYPES))
    assert made.signing_secret.startswith("whsec_")
    assert call("webhooks.retrieve", made.id).url == url
    assert call("webhooks.update", made.id, name="nightly").name == "nightly"
    assert [row.id for row in call.every("webhooks.list", limit=1)] == [made.id]
    assert call("webhooks.list", limit=5).data[0].name == "nightly"
    assert call("webhooks.event_types.list").data == list(TYPES)
    rotated = call("webhooks.rotate_secret", made.id)
    assert rotated.signing_secret != made.signing_secret
    assert call("webhooks.test", made.id, event_type=TYPES[0]).success
    [sent] = receiver.of(f"/{type(call).__name__}")
    event = call.client.webhooks.unwrap(sent.body, sent.headers, secret=rotated.signing_secret)
    assert event.type == TYPES[0]
    assert call("webhooks.delete", made.id).deleted
    for name in ("retrieve", "update", "delete", "rotate_secret"):
        with pytest.raises(openai.NotFoundError):
            call(f"webhooks.{name}", made.id)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"url": "ftp://a.example"}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"event_types": ["fine_tuning.job.started"]}, "event_types.0"),
        ({"event_types": []}, "event_types"),
        ({"name": ""}, "name"),
    ],
)
def test_bad_input_is_a_bad_request_that_names_the_field(
    call: Client, wrong: dict[str, Any], param: str
) -> None:
    good = {"name": "ci", "url": "https://hooks.example/", "event_types": [TYPES[0]]}
    with pytest.raises(openai.BadRequestError) as refused:
        call("webhooks.create", **(good | wrong))
    assert refused.value.param == param
