import json

import pytest

from worker.training import events
from worker.training.events import Failed, Notice, Ready, Sampled, Step

STEP = Step(3, 0.5, 2.5, 1e-4, 1.0, 100, 300, 50.5, 10**9, False)


@pytest.mark.parametrize(
    "event",
    [
        Ready(),
        STEP,
        Notice("warn", "c", "größer\nals", {"a": 1}),
        Failed("x", "y"),
        Sampled(1, [{"prompt": "p", "text": "t", "ended": True}], 1.0),
    ],
)
def test_what_is_said_is_heard(event: events.Event) -> None:
    said = events.line(event)
    assert "\n" not in said
    assert events.parse(said) == event


def test_numbers_that_json_cannot_say_become_null() -> None:
    said = events.line(Step(1, 0.1, float("nan"), 1e-4, float("inf"), 1, 1, 1.0, 1, True))
    heard = json.loads(said)
    assert (heard["loss"], heard["grad_norm"]) == (None, None)


@pytest.mark.parametrize("noise", ["", "hello", "[]", '{"event":"x"}', '{"event":"step","step":1}'])
def test_anything_else_is_refused(noise: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        events.parse(noise)
