"""The CPU's own dropout, embedding and attention against torch's definitions."""

from typing import Any

import pytest
import torch
from torch import nn

from worker.training import attention, dropout, lookup


def test_dropout_drops_the_share_asked_for_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    factors = dropout.keep(400_001, 0.1)
    assert len(factors) == 400_001
    assert float((factors == 0).float().mean()) == pytest.approx(0.1, abs=0.002)
    assert float(factors.mean()) == pytest.approx(1, abs=0.002)
    assert sorted(set(factors.tolist())) == [0, pytest.approx(1 / 0.9, rel=1e-4)]


def test_dropout_has_no_pattern() -> None:
    torch.manual_seed(0)
    dropped = (dropout.keep(400_000, 0.5) == 0).float() - 0.5
    # Each of the four lanes of a random word, and neighbours in and across words.
    for lane in range(4):
        assert float(dropped[lane::4].mean()) == pytest.approx(0, abs=0.01)
    for distance in (1, 2, 3, 4, 5, 64):
        assert float((dropped[:-distance] * dropped[distance:]).mean()) == pytest.approx(0, abs=0.003)


def test_dropout_follows_the_seed_and_rests_in_evaluation() -> None:
    layer, values = dropout.Dropout(0.3), torch.ones(5, 7)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(layer(values))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert layer.train(False)(values) is values


def test_an_embedding_learns_what_torchs_own_learns() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(50, 8))
    weight: Any = network[0].weight
    ids = torch.randint(50, (4, 9))
    (network(ids) ** 2).sum().backward()
    wanted = weight.grad.clone() * 2
    weight.grad = None
    lookup.replace(network)
    assert type(network[0]) is lookup.Embedding
    for _ in range(2):  # gradients add up
        (network(ids) ** 2).sum().backward()
    torch.testing.assert_close(weight.grad, wanted)
    weight.requires_grad_(False)
    assert not network(ids).requires_grad


def test_embeddings_with_options_stay_torchs() -> None:
    network = nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Embedding(9, 4, max_norm=1.0))
    lookup.replace(network)
    assert {type(module) for module in network} == {nn.Embedding}


@pytest.mark.parametrize("rate", [0.0, 1e-9])  # the second takes the way with dropout, and drops nothing
@pytest.mark.parametrize("groups", [1, 2])
def test_each_document_attends_to_itself_alone(rate: float, groups: int) -> None:
    torch.manual_seed(0)
    lengths = [5, 1, 8]
    query = torch.randn(1, 4, 14, 16, requires_grad=True)
    key, value = (torch.randn(1, 4 // groups, 14, 16, requires_grad=True) for _ in range(2))
    found, _ = attention.attend(nn.Module(), query, key, value, None, rate, documents=lengths)
    grown = torch.autograd.grad(found.square().sum(), [query, key, value])
    text = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    block = (text[:, None] == text[None, :]).tril()
    keys, values = (each.repeat_interleave(groups, 1) for each in (key, value))
    wanted = nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=block).transpose(1, 2)
    torch.testing.assert_close(found, wanted)
    for own, right in zip(
        grown, torch.autograd.grad(wanted.square().sum(), [query, key, value]), strict=True
    ):
        torch.testing.assert_close(own, right)


def test_attention_drops_weights_out() -> None:
    torch.manual_seed(0)
    shape = (1, 2, 40, 8)
    query, key, value = torch.randn(shape), torch.randn(shape), torch.ones(shape)
    # Of ones the weighted mean is one, unless weights are dropped; then it is one on average.
    found, _ = attention.attend(nn.Module(), query, key, value, None, 0.5, documents=[40])
    assert float(found.std()) > 0.1
    assert float(found.mean()) == pytest.approx(1, abs=0.15)
