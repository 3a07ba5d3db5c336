"""JSON by constrained decoding: whatever the weights, whatever else is in the batch, whenever it must end."""

import json
import re
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from app.errors import InvalidRequest
from tests.generation.tinymodel import Told, answers
from worker.generation.ending import Endings
from worker.generation.engine import Stepper
from worker.generation.grammar import Grammar
from worker.generation.model import Model
from worker.generation.request import Ask
from worker.generation.sampling import Sampling


class Dish(BaseModel):
    """What the schema below says, as something that can check it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=2)
    minutes: int = Field(ge=100)
    kinds: list[Literal["soup", "sauce"]] = Field(min_length=2)
    note: str | None


ANY: dict[str, Any] = {"type": "object"}
DISH = Dish.model_json_schema()
DEEP: dict[str, Any] = {"type": "string"}
for _ in range(200):
    DEEP = {"type": "array", "items": DEEP}


def ask(model: Model, schema: dict[str, Any], tokens: int, seed: int = 0, **options: Any) -> Ask:
    grammar = Grammar.compile(schema, model.lexicon, tokens)
    return Ask((5, 6, 7), tokens, sampling=Sampling(seed=seed, grammar=grammar, **options))


def text(model: Model, told: Told) -> str:
    return b"".join(model.vocabulary.shown(token) for token in told.tokens()).decode()


def test_random_weights_write_json_that_keeps_the_schema(engine: Stepper, model: Model) -> None:
    asks = [
        ask(model, DISH, 120, seed, temperature=temperature)
        for seed in range(6)
        for temperature in (0, 0.7, 2)
    ]
    for told in answers(engine, model, *asks):
        Dish.model_validate_json(text(model, told), strict=True)


@pytest.mark.parametrize("schema", [ANY, DISH], ids=["any object", "a schema"])
def test_json_that_max_tokens_ends_is_closed_in_time_and_says_length(
    engine: Stepper, model: Model, schema: dict[str, Any]
) -> None:
    least = 3 if schema is ANY else 70
    asks = [ask(model, schema, tokens, tokens) for tokens in range(least, least + 20)]
    reasons = set()
    for asked, told in zip(asks, answers(engine, model, *asks), strict=True):
        value = json.loads(text(model, told))
        assert isinstance(value, dict)
        if schema is DISH:
            Dish.model_validate(value)
        assert len(told.tokens()) <= asked.max_tokens
        reasons.add(told.reasons[0])
    assert "length" in reasons


ENDLESS: list[tuple[dict[str, Any], Callable[[Any], Any]]] = [
    ({"type": "string", "format": "email"}, lambda value: re.fullmatch(r"[^@]+@[^@]+", value)),
    ({"type": "string", "format": "uri"}, lambda value: re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", value)),
    ({"type": "string", "format": "duration"}, lambda value: re.fullmatch(r"P[0-9YMDWTHS]+", value)),
    ({"type": "string", "pattern": "x?ab"}, lambda value: "ab" in value),
    ({"type": "string", "pattern": r"\d{3}"}, lambda value: re.search(r"\d{3}", value)),
    ({"type": "string", "pattern": r"^[^@]+@[^@]+\.[^@]+$"}, lambda value: re.search(r"@.+\.", value)),
    ({"type": "number", "exclusiveMinimum": 0}, lambda value: value > 0),
    ({"type": "integer", "multipleOf": 97, "minimum": 98}, lambda value: value > 97 and value % 97 == 0),
]


@pytest.mark.parametrize(("part", "holds"), ENDLESS, ids=[str(part)[:60] for part, _ in ENDLESS])
def test_what_any_character_goes_on_with_is_ended_in_time_too(
    engine: Stepper, model: Model, part: dict[str, Any], holds: Callable[[Any], Any]
) -> None:
    schema = {
        "type": "object",
        "properties": {"a": part, "b": {"type": "array", "items": {"anyOf": [{"type": "null"}, part]}}},
        "required": ["a", "b"],
    }
    asks = [ask(model, schema, tokens, tokens) for tokens in range(40, 70, 2)]
    reasons = set()
    for told in answers(engine, model, *asks):
        value = json.loads(text(model, told))
        assert holds(value["a"])
        assert all(each is None or holds(each) for each in value["b"])
        reasons.add(told.reasons[0])
    assert "length" in reasons


def test_looking_for_an_end_takes_no_longer_however_large_the_schema_is(model: Model) -> None:
    parts = [{"type": "string", "pattern": f"^[^@]*@{number}[A-Za-z]{{60,}}z$"} for number in range(900)]
    began = time.perf_counter()
    endings = Endings.of({"anyOf": parts}, model.lexicon.bytes, model.lexicon.matcher)
    assert time.perf_counter() - began < 2  # 0.3 s, and 30 s without a bound
    assert endings.strings == []


def test_what_cannot_be_closed_in_time_is_cut(engine: Stepper, model: Model) -> None:
    (told,) = answers(engine, model, ask(model, DISH, 4))
    assert told.reasons == {0: "length"}
    assert len(told.tokens()) == 4
    assert text(model, told).startswith("{")


def test_a_grammar_of_one_row_leaves_the_others_as_they_were(engine: Stepper, model: Model) -> None:
    free = [Ask((seed, 9), 40, sampling=Sampling(seed=seed)) for seed in range(1, 9)]
    held = [ask(model, DISH, 90, seed) for seed in range(3)]
    alone = answers(engine, model, *free), answers(engine, model, *held)
    mixed = answers(engine, model, *free[:4], *held, *free[4:])
    assert [*mixed[:4], *mixed[7:]] == alone[0]
    assert mixed[4:7] == alone[1]


def test_several_choices_go_their_own_ways(engine: Stepper, model: Model) -> None:
    grammar = Grammar.compile(ANY, model.lexicon, 30)
    (told,) = answers(
        engine, model, Ask((5,), 30, choices=4, sampling=Sampling(seed=1, grammar=grammar, bias={0: 5}))
    )
    pieces = {b"".join(model.vocabulary.shown(token) for token in told.tokens(choice)) for choice in range(4)}
    assert len(pieces) == 4
    assert all(isinstance(json.loads(piece), dict) for piece in pieces)


def test_a_space_may_lead_where_the_template_puts_one(engine: Stepper, model: Model) -> None:
    (space,) = model.vocabulary.encode(" ")
    grammar = Grammar.compile(ANY, model.lexicon, 20, lead=" ")
    (told,) = answers(engine, model, Ask((5,), 20, sampling=Sampling(0, grammar=grammar, bias={space: 100})))
    assert text(model, told).startswith(" {")
    json.loads(text(model, told))


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {"type": "string"}}, '"not"'),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
        ({"type": "objekt"}, "objekt"),
        ({"$ref": "http://elsewhere/schema"}, "elsewhere"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 3}]}, "anyOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"type": "string", "const": "x" * 100_001}, "longer"),
        (DEEP, "recursion"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_its_keyword(
    model: Model, schema: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named) as refused:
        Grammar.compile(schema, model.lexicon, 10)
    assert refused.value.param == "response_format"


def test_a_grammar_that_breaks_fails_its_own_answer_alone(
    engine: Stepper, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ask(model, ANY, 30)
    assert broken.sampling.grammar is not None
    broken.sampling.grammar.matcher.consume_token(model.vocabulary.encode("x")[0])  # no JSON begins so
    sound, failed = answers(engine, model, ask(model, DISH, 120), broken)
    assert failed.failure is not None
    assert "format" in failed.failure
    Dish.model_validate_json(text(model, sound))
