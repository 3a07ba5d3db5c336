"""What the engine writes, beside transformers' own `generate` and plain forward passes."""

import gc
import random
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tests.generation.tinymodel import CONTEXT, answers, make_tokenizer, start
from worker.generation.batch import Batch, Capacity
from worker.generation.cache import Timeline
from worker.generation.decoder import Decoder
from worker.generation.engine import Stepper
from worker.generation.model import Model, load
from worker.generation.request import Ask, Ended, Event, Failed, Ticket
from worker.generation.sampling import Sampling

GREEDY = Sampling(temperature=0)


def prompts(count: int, longest: int = 60, seed: int = 0, tokens: int = 350) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [tuple(draw.randrange(1, tokens) for _ in range(draw.randint(1, longest))) for _ in range(count)]


def generate(reference: Any, prompt: tuple[int, ...], max_tokens: int, **options: Any) -> list[int]:
    """Token ids that transformers writes, without the end token."""
    written: list[int] = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=max_tokens,
        do_sample=False,
        pad_token_id=0,
        **options,
    )[0, len(prompt) :].tolist()
    return [token for token in written if token != 0]


def test_greedy_text_is_that_of_generate_in_a_crowd_that_comes_and_goes(
    engine: Stepper, model: Model, reference: Any
) -> None:
    asks = [
        Ask(prompt, random.Random(place).randint(1, 60), sampling=GREEDY)
        for place, prompt in enumerate(prompts(90))
    ]
    told = answers(engine, model, *asks)
    expected = [generate(reference, ask.prompt, ask.max_tokens) for ask in asks]
    assert [each.tokens() for each in told] == expected
    assert {each.reasons[0] for each in told} == {"stop", "length"}
    assert len({tuple(tokens) for tokens in expected}) > 80, "the model writes the same to everybody"


def test_greedy_text_is_that_of_generate_alone(engine: Stepper, model: Model, reference: Any) -> None:
    for prompt in prompts(5, seed=1):
        (told,) = answers(engine, model, Ask(prompt, 40, sampling=GREEDY))
        assert told.tokens() == generate(reference, prompt, 40)


def test_a_prompt_longer_than_one_reading_gives_the_same_text(
    engine: Stepper, model: Model, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.generation.batch.READ_TOKENS", 7)
    asks = [Ask(prompt, 20, sampling=GREEDY) for prompt in prompts(6, longest=100, seed=2)]
    told = answers(engine, model, *asks)
    assert [each.tokens() for each in told] == [generate(reference, ask.prompt, 20) for ask in asks]


def test_a_prompt_and_answer_may_fill_the_whole_context(
    engine: Stepper, model: Model, reference: Any
) -> None:
    prompt = prompts(1, seed=3)[0]
    room = CONTEXT - len(prompt)
    calm = Sampling(temperature=0, bias={0: -100.0})
    (told,) = answers(engine, model, Ask(prompt, room, sampling=calm))
    assert len(told.tokens()) == room
    assert told.reasons == {0: "length"}


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_other_architectures_are_exact_in_a_batch_too(kind: str, engine: Stepper, tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    torch.manual_seed(5)
    shape: dict[str, Any] = {
        "vocab_size": 360,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.25,
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    weights: Any = (
        LlamaForCausalLM(LlamaConfig(**shape))
        if kind == "llama"
        else MistralForCausalLM(MistralConfig(**shape, sliding_window=9))
    )
    weights.save_pretrained(tmp_path)
    model = load(tmp_path, kind, torch.device("cpu"))
    asks = [Ask(prompt, 30, sampling=GREEDY) for prompt in prompts(12, longest=40, seed=4)]
    told = answers(engine, model, *asks)
    weights.eval()
    assert [each.tokens() for each in told] == [generate(weights, ask.prompt, 30) for ask in asks]


def test_logprobs_are_those_of_a_plain_forward_pass(engine: Stepper, model: Model, reference: Any) -> None:
    asks = [
        Ask(prompt, 12, logprobs=5, prompt_logprobs=True, sampling=Sampling(temperature=1.3, seed=9))
        for prompt in prompts(8, seed=6)
    ]
    for ask, told in zip(asks, answers(engine, model, *asks), strict=True):
        tokens = [*ask.prompt, *told.tokens()]
        with torch.inference_mode():
            expected = reference(torch.tensor([tokens])).logits[0].log_softmax(-1)
        scored = [*told.prompt, *told.choices.get(0, [])]
        assert [each.token for each in scored] == tokens
        assert scored[0].logprob is None
        for place, each in enumerate(scored[1:]):
            assert each.logprob == pytest.approx(float(expected[place, each.token]), abs=1e-4)
            best = expected[place].topk(5)
            assert [token for token, _ in each.top] == best.indices.tolist()
            assert [value for _, value in each.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_seed_gives_the_same_tokens_alone_and_in_a_crowd(engine: Stepper, model: Model) -> None:
    seeded = Ask((5, 6, 7), 40, choices=3, sampling=Sampling(seed=42, top_p=0.9, temperature=1.2))
    crowd = [Ask(prompt, 50, choices=2) for prompt in prompts(20, seed=7)]
    (alone,) = answers(engine, model, seeded)
    crowded = answers(engine, model, *crowd[:10], seeded, *crowd[10:])[10]
    assert crowded == alone
    assert len({tuple(alone.tokens(choice)) for choice in range(3)}) == 3
    (first,) = answers(engine, model, Ask(seeded.prompt, 40, sampling=seeded.sampling))
    assert first.tokens() == alone.tokens(0)


def test_without_a_seed_no_two_answers_are_alike(engine: Stepper, model: Model) -> None:
    told = answers(engine, model, *[Ask((5, 6, 7), 30) for _ in range(4)])
    assert len({tuple(each.tokens()) for each in told}) == 4


def test_more_choices_than_there_are_rows_are_all_written(model: Model) -> None:
    engine = Stepper(Capacity(rows=3))
    try:
        told = answers(engine, model, Ask((1, 2, 3), 9, choices=8), Ask((4,), 9, choices=2))
    finally:
        engine.close()
    assert [sorted(each.reasons) for each in told] == [list(range(8)), [0, 1]]


def test_memory_for_keys_and_values_bounds_the_batch_but_always_lets_one_in(model: Model) -> None:
    room = Capacity(cache_bytes=2 * 20 * model.cache_bytes_per_token)
    engine, widest = Stepper(room), 0
    turn = Batch.turn

    def watched(batch: Batch) -> None:
        nonlocal widest
        turn(batch)
        widest = max(widest, len(batch._writing))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "turn", watched)
        ask = Ask((1, 2, 3, 4), 16, sampling=Sampling(bias={0: -100}))
        for listener in [start(engine, model, [ask]) for _ in range(6)]:
            listener.hear_all()
        assert widest == 2
        answers(engine, model, Ask((1, 2, 3, 4), 100))
    engine.close()


@pytest.mark.parametrize("many", ["choices", "prompts"])
def test_a_short_answer_does_not_wait_for_all_that_one_request_asks_for(model: Model, many: str) -> None:
    calm = Sampling(temperature=0, bias={0: -100})
    batch = Batch(model, Capacity(rows=8))
    if many == "choices":
        batch.waiting.append(Ticket(Ask((1, 2), 100, choices=40, sampling=calm), lambda _: None))
    else:
        batch.waiting.extend(
            Ticket(Ask((1, 2), 100, sampling=calm), lambda _: None, "many") for _ in range(40)
        )
    heard: list[Event] = []
    turns = []
    with torch.inference_mode():
        for _ in range(3):
            batch.turn()
        assert len(batch._writing) == 6  # three quarters
        for _ in range(4):  # more of them than there are rows left
            batch.waiting.append(Ticket(Ask((3, 4, 5), 3, sampling=calm), heard.extend))
        while sum(isinstance(event, Ended) for event in heard) < 4:
            batch.turn()
            turns.append(len(batch._writing))
    assert len(turns) < 10
    assert max(turns) == 8


def test_a_row_that_is_free_goes_first_to_who_has_none(model: Model) -> None:
    calm = Sampling(temperature=0, bias={0: -100})
    batch = Batch(model, Capacity(rows=4))
    ended: list[str] = []

    def note(name: str) -> Callable[[Sequence[Event]], None]:
        return lambda events: ended.extend(name for event in events if isinstance(event, Ended))

    for name in "ab":
        batch.waiting.append(Ticket(Ask((1, 2), 10, choices=20, sampling=calm), note(name)))
    with torch.inference_mode():
        batch.turn()
        for name in "cd":
            batch.waiting.append(Ticket(Ask((1, 2), 10, sampling=calm), note(name)))
        while not {"c", "d"} <= set(ended):
            batch.turn()
        assert len(ended) <= 8
        while not batch.idle:
            batch.turn()
    assert {name: ended.count(name) for name in "abcd"} == {"a": 20, "b": 20, "c": 1, "d": 1}


def test_choices_held_back_begin_together_with_a_prompt_read_another_way(
    model: Model, reference: Any
) -> None:
    """Read beside a step, a prompt leaves states; read by itself, as for its scores, logits."""
    brief = Stepper(Capacity(rows=4))
    many = [Ask((1, 2), 1 + place % 7, choices=9, sampling=GREEDY) for place in range(3)]
    scored = [Ask(prompt, 4, prompt_logprobs=True, logprobs=0, sampling=GREEDY) for prompt in prompts(12)]
    listeners = [start(brief, model, [ask]) for pair in zip(many * 4, scored, strict=True) for ask in pair]
    for listener in listeners:
        (ask,), (told,) = listener.asks, listener.hear_all()
        assert told.failure is None
        expected = generate(reference, ask.prompt, ask.max_tokens)
        assert [told.tokens(choice) for choice in range(ask.choices)] == [expected] * ask.choices
    brief.close()


def test_waiting_prompts_hold_up_those_who_write_by_one_reading_at_most(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.generation.batch.READ_TOKENS", 10)
    batch = Batch(model, Capacity())
    calm = Sampling(temperature=0, bias={0: -100})
    batch.waiting.extend(Ticket(Ask((1, 2, 3, 4), 50, sampling=calm), lambda _: None) for _ in range(9))
    writing = []
    with torch.inference_mode():
        for _ in range(4):
            batch.turn()
            writing.append(len(batch._writing))
    assert writing == [2, 4, 6, 8]


@pytest.mark.parametrize("broken", ["_write", "step", "forward", "insert"])
def test_a_failure_on_the_way_in_is_told_to_everybody(
    model: Model, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that runs out while prompts are read or become rows; who is in no list would wait for ever."""

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    where = {"_write": Batch, "step": Decoder, "forward": Model, "insert": Timeline}[broken]
    if broken == "forward":  # without the short way
        model = replace(model, decoder=None)
    monkeypatch.setattr(where, broken, fail)
    batch = Batch(model, Capacity())
    told: list[list[object]] = [[] for _ in range(3)]
    batch.waiting.extend(Ticket(Ask((1, 2), 5), heard.extend) for heard in told)
    with torch.inference_mode(), pytest.raises(MemoryError):
        batch.turn()
    batch.fail("It is over.")
    assert [heard[-1] for heard in told] == [Failed("It is over.")] * 3


def test_no_tokens_asked_for_reads_the_prompt_alone(engine: Stepper, model: Model) -> None:
    (told,) = answers(engine, model, Ask((1, 2, 3), 0, logprobs=0, prompt_logprobs=True))
    assert told.tokens() == []
    assert told.reasons == {0: "length"}
    assert [each.token for each in told.prompt] == [1, 2, 3]


def test_a_cancelled_ask_is_written_no_further_and_the_others_are(model: Model, reference: Any) -> None:
    engine = Stepper()
    long = [Ask((place,), 120, sampling=Sampling(bias={0: -100})) for place in range(1, 4)]
    listener = start(engine, model, long)
    listener.hear()
    for ticket in listener.tickets:
        ticket.cancel()
    (told,) = answers(engine, model, Ask((9, 8), 30, sampling=GREEDY))
    assert told.tokens() == generate(reference, (9, 8), 30)
    engine.submit(model, [], listener.sink)
    engine.close()
    assert all(len(each.tokens()) < 120 for each in listener.told)
    assert not engine._batches


def test_an_ended_choice_leaves_its_row_to_others(engine: Stepper, model: Model, reference: Any) -> None:
    ask = Ask((3, 4), 100, choices=2, sampling=Sampling(temperature=0, bias={0: -100}))
    listener = start(engine, model, [ask, Ask((7, 7, 7), 60, sampling=GREEDY)])
    listener.tickets[0].end(0)
    while 1 not in listener.told[0].reasons or not listener.told[1].reasons:
        listener.hear()
    assert 0 not in listener.told[0].reasons
    assert len(listener.told[0].tokens(1)) == 100
    assert listener.told[1].tokens() == generate(reference, (7, 7, 7), 60)


def test_a_model_that_nobody_holds_any_more_leaves_memory(engine: Stepper, folder: Path) -> None:
    brief = load(folder, "brief", torch.device("cpu"))
    answers(engine, brief, Ask((1, 2), 5), Ask((3,), 7))
    held = weakref.ref(brief)
    del brief
    deadline = time.monotonic() + 60
    while held() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    assert held() is None


def test_a_step_that_fails_is_told_to_its_own_asks_alone(
    engine: Stepper, model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = load(folder, "broken", torch.device("cpu"))
    monkeypatch.setattr(broken.decoder, "step", lambda *_: 1 / 0)
    sound = start(engine, model, [Ask((1, 2), 50, sampling=GREEDY)])
    (told,) = answers(engine, broken, Ask((1, 2), 5))
    assert told.failure == "The generator failed at this request."
    assert sound.hear_all()[0].failure is None
    (again,) = answers(engine, model, Ask((1, 2), 5, sampling=GREEDY))
    assert again.reasons


def test_a_temperature_next_to_nothing_is_none_and_fails_nobody(engine: Stepper, model: Model) -> None:
    """Divided by it, logits are no numbers, and whoever is in the same step would hear of it."""
    coldest = Sampling(temperature=1e-40)
    drawn = Ask((1, 2, 3), 30, sampling=Sampling(seed=1))
    cold, greedy, other = answers(
        engine, model, Ask((1,), 5, sampling=coldest), Ask((1,), 5, sampling=GREEDY), drawn
    )
    assert cold.tokens() == greedy.tokens()
    assert other.tokens() == answers(engine, model, drawn)[0].tokens()


def test_closing_tells_those_who_wait(model: Model) -> None:
    engine = Stepper()
    listener = start(engine, model, [Ask((1,), 127, sampling=Sampling(bias={0: -100})) for _ in range(3)])
    listener.hear()
    engine.close()
    assert {each.failure for each in listener.hear_all()} == {"The generator is stopping."}
    with pytest.raises(RuntimeError):
        engine.submit(model, [Ask((1,), 1)], listener.sink)
