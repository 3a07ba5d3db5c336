"""The chunked output layer against autograd's own."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from worker.training import head
from worker.training.head import Head, WholeHead

WIDTH, VOCABULARY, TARGETS = 24, 301, 37


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, VOCABULARY, bias=False)


@pytest.fixture
def hidden() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(TARGETS, WIDTH, requires_grad=True)


@pytest.fixture
def targets() -> Tensor:
    torch.manual_seed(2)
    return torch.randint(VOCABULARY, (TARGETS,))


def weight(layer: nn.Linear) -> nn.Parameter:
    return cast(nn.Parameter, layer.weight)


def reference(
    layer: nn.Linear, hidden: Tensor, targets: Tensor, scale: float
) -> tuple[float, Tensor, Tensor]:
    loss = nn.functional.cross_entropy(layer(hidden), targets, reduction="sum")
    into_weight, into_hidden = torch.autograd.grad(loss * scale, [layer.weight, hidden])
    return loss.item(), into_weight, into_hidden


@pytest.mark.parametrize("chunk", [1, 8, 37, 100])
def test_loss_and_gradients_are_those_of_autograd(
    layer: nn.Linear, hidden: Tensor, targets: Tensor, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head.CHUNK, "cpu", chunk)
    loss, into_weight, into_hidden = reference(layer, hidden, targets, 0.25)
    found = Head(weight(layer), torch.float32).learn(hidden, targets, 0.25)
    assert float(found) == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(layer.weight.grad, into_weight)
    torch.testing.assert_close(hidden.grad, into_hidden)


def test_gradients_of_micro_steps_add_up(layer: nn.Linear, hidden: Tensor, targets: Tensor) -> None:
    _, into_weight, _ = reference(layer, hidden, targets, 1.0)
    own = Head(weight(layer), torch.float32)
    for at in (slice(0, 20), slice(20, None)):
        own.learn(hidden[at], targets[at], 1.0)
    torch.testing.assert_close(layer.weight.grad, into_weight)


def test_a_frozen_weight_gets_no_gradient(layer: nn.Linear, hidden: Tensor, targets: Tensor) -> None:
    _, _, into_hidden = reference(layer, hidden, targets, 1.0)
    layer.weight.requires_grad_(False)
    Head(weight(layer), torch.float32).learn(hidden, targets, 1.0)
    assert layer.weight.grad is None
    torch.testing.assert_close(hidden.grad, into_hidden)


def test_scoring_gives_loss_and_top_ranked_targets(
    layer: nn.Linear, hidden: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head.CHUNK, "cpu", 10)
    targets[:5] = layer(hidden).argmax(-1)[:5]
    loss, _, _ = reference(layer, hidden, targets, 1.0)
    for kind in (Head(weight(layer), torch.float32), WholeHead(layer)):
        score = kind.score(hidden, targets)
        assert float(score.loss) == pytest.approx(loss, rel=1e-6)
        assert int(score.correct) == int((layer(hidden).argmax(-1) == targets).sum()) >= 5


def test_the_whole_head_learns_the_same(layer: nn.Linear, hidden: Tensor, targets: Tensor) -> None:
    loss, into_weight, into_hidden = reference(layer, hidden, targets, 0.5)
    found = WholeHead(layer).learn(hidden, targets, 0.5)
    assert float(found) == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(layer.weight.grad, into_weight)
    torch.testing.assert_close(hidden.grad, into_hidden)


@pytest.mark.parametrize("kind", ["chunked", "whole", "bf16"])
def test_weighted_losses_go_back_as_autograd_would_have_it(
    layer: nn.Linear, hidden: Tensor, targets: Tensor, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(head.CHUNK, "cpu", 10)
    weights = torch.linspace(-1, 2, TARGETS)
    losses = nn.functional.cross_entropy(layer(hidden), targets, reduction="none")
    into_weight, into_hidden = torch.autograd.grad((losses * weights).sum(), [layer.weight, hidden])
    exact = {"chunked": torch.float32, "bf16": torch.bfloat16}.get(kind)
    own = Head(weight(layer), exact) if exact else WholeHead(layer)
    near = 0.05 if kind == "bf16" else 1e-5
    torch.testing.assert_close(own.losses(hidden, targets), losses.detach(), atol=near, rtol=near)
    own.push(hidden, targets, weights)
    torch.testing.assert_close(layer.weight.grad, into_weight, atol=near, rtol=near)
    torch.testing.assert_close(hidden.grad, into_hidden, atol=near, rtol=near)


def test_a_huge_logit_makes_no_infinity(layer: nn.Linear, targets: Tensor) -> None:
    hidden = torch.full((TARGETS, WIDTH), 1e4, requires_grad=True)
    loss, _, _ = reference(layer, hidden, targets, 1.0)
    assert float(Head(weight(layer), torch.float32).learn(hidden, targets, 1.0)) == pytest.approx(
        loss, rel=1e-5
    )
    assert layer.weight.grad is not None
    assert bool(layer.weight.grad.isfinite().all())


def test_in_bf16_the_gradients_stay_close(layer: nn.Linear, hidden: Tensor, targets: Tensor) -> None:
    loss, into_weight, into_hidden = reference(layer, hidden, targets, 1.0)
    found = Head(weight(layer), torch.bfloat16).learn(hidden, targets, 1.0)
    assert float(found) == pytest.approx(loss, rel=1e-2)
    torch.testing.assert_close(layer.weight.grad, into_weight, atol=0.05, rtol=0.05)
    torch.testing.assert_close(hidden.grad, into_hidden, atol=0.05, rtol=0.05)
