"""The largest product found by screening, beside all products in float64."""

import os
import subprocess
import sys

import pytest
import torch

from worker.generation import screen
from worker.generation.head import Head
from worker.generation.screen import BLOCK, Screen

WIDTH = 64


def draw(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def best(weight: torch.Tensor, states: torch.Tensor) -> list[int]:
    found: list[int] = (states.double() @ weight.double().T).argmax(1).tolist()
    return found


def agree(weight: torch.Tensor, states: torch.Tensor, least: int) -> None:
    """The screen says what the whole product says wherever it says anything, for at least so many rows."""
    found = [Screen(weight).best(row[None]) for row in states]
    expected = best(weight, states)
    told = [(mine[0], right) for mine, right in zip(found, expected, strict=True) if mine]
    assert [mine for mine, _ in told] == [right for _, right in told]
    assert len(told) >= least


def test_the_largest_of_products_as_language_models_have_them() -> None:
    weight, states = draw(3000), draw(40, seed=1)
    agree(weight, states, 40)
    agree(weight + 20 * draw(1, seed=2), states, 40)  # much in common: what it adds is the same for all
    agree(weight * draw(3000, seed=3)[:, :1].exp(), states, 40)  # some tokens far longer than others
    outlying = torch.ones(WIDTH)
    outlying[5] = 60
    agree(weight, states * outlying, 1)  # one state far above the others, which the rounding then loses
    agree(weight, states * 1e-20, 40)
    agree(weight, states * 1e20, 40)


def test_rows_of_all_sizes_are_screened_together() -> None:
    weight = draw(3000)
    states = draw(33, seed=1) * torch.logspace(-6, 6, 33)[:, None]
    assert Screen(weight).best(states) == best(weight, states)


def test_places_behind_the_last_token_are_never_the_best() -> None:
    """The best may be far below nought."""
    weight = draw(BLOCK + 1)
    weight[:, 0] = 1
    weight[7, 0] = 0.999
    states = torch.zeros(1, WIDTH)
    states[0, 0] = -1000
    assert Screen(weight).best(states) == [7]


def test_numbers_that_are_not_finite_are_left_to_the_whole_product() -> None:
    states = draw(3, seed=1)
    states[1, 4] = float("nan")
    assert Screen(draw(1000)).best(states) is None
    weight = draw(1000)
    weight[5] = float("inf")
    assert Screen(weight).best(draw(2)) is None


def test_of_equals_it_is_the_first() -> None:
    weight = draw(1000)
    states = draw(8, seed=1)
    for row, token in enumerate(best(weight, states)):
        weight[(900 + row)] = weight[token]
    expected = [min(token, *same) for token, same in equals(weight, states)]
    assert Screen(weight).best(states) == expected


def equals(weight: torch.Tensor, states: torch.Tensor) -> list[tuple[int, list[int]]]:
    """The best token of each row and all that have the same weights."""
    return [
        (token, (weight == weight[token]).all(1).nonzero()[:, 0].tolist()) for token in best(weight, states)
    ]


def test_a_model_that_is_not_sure_gets_the_whole_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the screen rests for some steps, for it costs as much as it brings."""
    linear = torch.nn.Linear(WIDTH, 70_000, bias=False)
    weight = draw(70_000)
    weight[:, 0] *= 1e-4  # lost in rounding, and the states have nothing else
    linear.weight = torch.nn.Parameter(weight)
    linear.requires_grad_(False)
    asked: list[torch.Tensor] = []
    whole = Screen.best

    def counted(own: Screen, states: torch.Tensor) -> list[int] | None:
        asked.append(states)
        return whole(own, states)

    monkeypatch.setattr(Screen, "best", counted)
    head, states = Head(linear), torch.zeros(2, WIDTH)
    states[:, 0] = torch.tensor([1.0, -1.0])
    told = [head.likeliest(states) for _ in range(60)]
    assert told == [head(states).argmax(1).tolist()] * 60
    assert 1 <= len(asked) <= 2


@pytest.mark.parametrize("isa", ["AVX2", "DEFAULT"])
def test_no_sum_is_cut_off_in_a_processor_without_int8_products(isa: str) -> None:
    """oneDNN then adds two products up in 16 bits; states are rounded to half as many steps."""
    script = (
        "import torch; from worker.generation import screen; from tests.generation.test_screen import *;"
        "screen._levels = lambda: (63, 64);"
        "weight = torch.where(draw(2000) > 0, 1.0, 0.99); states = weight[:50] * 7; agree(weight, states, 1);"
        "agree(draw(2000), draw(50, 1), 50)"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_its_size_is_what_its_tensors_take() -> None:
    """The budget of models in memory counts it; of the packed weights a byte each can be known."""
    made = Screen(draw(1000))
    kept = [each for name, each in vars(made).items() if isinstance(each, torch.Tensor) and name != "_weight"]
    assert len(kept) == 7
    seen = sum(each.nbytes for each in kept if each is not made._packed)
    assert made.size == seen + 16 * BLOCK * WIDTH


def test_this_processor_is_asked_what_it_can() -> None:
    assert screen._levels() in ((127, 128), (63, 64))
