"""What tokens are chosen: against the definitions, and against transformers' own processors."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from worker.generation.sampling import Sampler, Sampling, choose

VOCABULARY = 40


def rows(count: int, seed: int = 0, size: int = VOCABULARY, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) * scale


def draws(logits: torch.Tensor, sampling: Sampling, count: int = 4000) -> Counter[int]:
    """What `count` sequences that stand at the same place choose."""
    samplers = [Sampler(sampling, (), choice) for choice in range(count)]
    return Counter(choose(logits.expand(count, -1), samplers))


def test_temperature_zero_and_top_k_one_take_the_likeliest() -> None:
    logits = rows(20)
    for sampling in (Sampling(temperature=0), Sampling(temperature=0, top_p=0.1, seed=3), Sampling(top_k=1)):
        assert choose(logits, [Sampler(sampling, (), 0) for _ in logits]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_tempered_softmax(temperature: float) -> None:
    logits = rows(1, size=8, scale=1.5)[0]
    expected = (logits.double() / temperature).softmax(-1)
    counts = draws(logits, Sampling(temperature=temperature, seed=1), 20_000)
    chi = sum((counts[token] - 20_000 * p) ** 2 / (20_000 * p) for token, p in enumerate(expected.tolist()))
    assert chi < 24.3  # 7 degrees of freedom: passed by 999 seeds of 1,000; the seed is fixed


def kept_by(*warpers: Any, logits: torch.Tensor) -> set[int]:
    scores = logits[None].double()
    for warper in warpers:
        scores = warper(torch.zeros(1, 0, dtype=torch.long), scores)
    return set(scores[0].isfinite().nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        (Sampling(top_k=5, seed=1), [TopKLogitsWarper(5)]),
        (Sampling(top_p=0.7, seed=1), [TopPLogitsWarper(0.7)]),
        (Sampling(min_p=0.2, seed=1), [MinPLogitsWarper(0.2)]),
        (
            Sampling(top_k=8, top_p=0.8, min_p=0.1, seed=1),
            [TopKLogitsWarper(8), TopPLogitsWarper(0.8), MinPLogitsWarper(0.1)],
        ),
        (Sampling(top_p=1e-9, seed=1), [TopKLogitsWarper(1)]),
        (Sampling(top_p=0.0, seed=1), [TopKLogitsWarper(1)]),
    ],
)
def test_the_tokens_that_can_be_drawn_are_those_that_transformers_keeps(
    sampling: Sampling, warpers: list[Any]
) -> None:
    for seed in range(3):
        logits = rows(1, seed, size=20, scale=1.5)[0]
        assert set(draws(logits, sampling)) == kept_by(*warpers, logits=logits)


def test_a_flat_distribution_is_cut_beyond_the_shortcut_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.generation.sampling.NUCLEUS", 16)
    logits = torch.zeros(200)
    logits[100] = 1
    assert len(draws(logits, Sampling(top_p=0.9, seed=9), 2000)) == 180


def test_rows_with_other_options_do_not_disturb_one_another() -> None:
    logits = rows(6, seed=4)
    options = [
        Sampling(temperature=0),
        Sampling(seed=1),
        Sampling(seed=2, top_p=0.5),
        Sampling(seed=3, top_k=3, temperature=1.9),
        Sampling(seed=4, bias={7: 100}),
        Sampling(seed=5, min_p=0.3),
    ]

    def sampler(place: int) -> Sampler:
        return Sampler(options[place], (1, 2), 0)

    together = choose(logits, [sampler(place) for place in range(6)])
    assert together == [choose(logits[place : place + 1], [sampler(place)])[0] for place in range(6)]
    assert together[4] == 7


def test_the_logits_that_are_scored_stay_as_they_are() -> None:
    logits = rows(2)
    before = logits.clone()
    choose(logits, [Sampler(Sampling(bias={1: 50}, temperature=0), (), 0), Sampler(Sampling(top_k=2), (), 0)])
    assert torch.equal(logits, before)


IDS = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)


@settings(max_examples=60)
@given(IDS, IDS, st.floats(-2, 2), st.floats(-2, 2), st.floats(0.1, 3), st.integers(0, 99))
def test_penalties_and_bias_are_their_definitions(
    prompt: list[int], written: list[int], presence: float, frequency: float, repetition: float, seed: int
) -> None:
    bias = {3: 1.5, 7: -100.0}
    sampling = Sampling(
        presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition, bias=bias
    )
    sampler = Sampler(sampling, prompt, 0)
    sampler.counts.update(written)
    logits = rows(1, seed)[0]
    expected = logits.clone()
    if prompt or written:
        processor = RepetitionPenaltyLogitsProcessor(repetition)
        expected = processor(torch.tensor([prompt + written]), expected[None])[0]
    for token, times in Counter(written).items():
        expected[token] -= presence + frequency * times
    for token, value in bias.items():
        expected[token] += value
    sampler.adjust(logits)
    assert logits.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_tokens_chosen_count_for_the_next_choice() -> None:
    logits = torch.zeros(1, 3)
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=1), (), 0)
    assert [choose(logits, [sampler])[0] for _ in range(6)] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("seed", range(20))
def test_an_impossible_token_is_never_drawn_whatever_the_draw(seed: int) -> None:
    logits = rows(1, seed)
    logits[0, -3:] = -math.inf

    class Last(Sampler):
        def uniform(self) -> float:
            return 1 - 2**-53

    (token,) = choose(logits, [Last(Sampling(temperature=1 + seed / 20), (), 0)])
    assert token == VOCABULARY - 4
