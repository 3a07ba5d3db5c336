"""The short way of a decode step, beside transformers' own forward pass."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from tests.generation.test_engine import prompts
from worker.generation.cache import Timeline, states_of
from worker.generation.decoder import Decoder
from worker.generation.model import Model


@pytest.mark.parametrize("rows", [3, 7])  # few and many
def test_the_short_way_of_a_step_gives_the_logits_of_the_long_one(rows: int, model: Model) -> None:
    """Rows of different lengths, through `Decoder` and through transformers' own forward pass."""
    agree(model, rows)


def test_a_layer_with_another_activation_goes_the_short_way_too(model: Model) -> None:
    """Also one that is nearly the usual one, which the packed product has in it."""
    config: Any = model.weights.config
    changed: Any = GPT2LMHeadModel(config)
    changed.eval().requires_grad_(False)
    changed.transformer.h[0].mlp.act = torch.nn.ReLU()
    changed.transformer.h[1].mlp.act = torch.nn.GELU()
    agree(replace(model, weights=changed, decoder=Decoder.of(changed)), 7)


def agree(model: Model, rows: int) -> None:
    assert model.decoder is not None
    logits: list[list[torch.Tensor]] = []
    for way in (model, replace(model, decoder=None)):
        timeline = Timeline()
        with torch.inference_mode():
            for prompt in prompts(rows, seed=11):
                cache = DynamicCache()
                places = torch.arange(len(prompt))[None]
                way.forward(torch.tensor([prompt]), places, cache)
                timeline.insert(states_of(cache), len(prompt))
            steps = [way.step(torch.arange(rows) + step, timeline)[0].logits for step in range(60)]
        logits.append(steps)
    for short, long in zip(*logits, strict=True):
        assert torch.allclose(short, long, atol=1e-4, rtol=0)


def test_prompts_are_read_beside_a_step_as_they_are_alone(model: Model) -> None:
    """Their states and what comes after them; the rows of the step take no notice. And without any row."""
    first, *others = prompts(5, seed=12)
    with torch.inference_mode():
        for rows in (1, 0):
            beside, alone = Timeline(), Timeline()
            if rows:
                cache = read(model, first)[0]
                beside.insert(states_of(cache), len(first))
                alone.insert(states_of(cache), len(first))
            tokens = torch.arange(rows) + 7
            outlook, states = model.step(tokens, beside, prompts=[torch.tensor(each) for each in others])
            if rows:
                assert torch.allclose(
                    outlook.logits[:rows], model.step(tokens, alone)[0].logits, atol=1e-4, rtol=0
                )
            for place, (prompt, own) in enumerate(zip(others, states, strict=True), rows):
                cache, logits = read(model, prompt)
                assert torch.allclose(outlook.logits[place], logits, atol=1e-4, rtol=0)
                for one, other in zip(own, states_of(cache), strict=True):
                    assert torch.allclose(one[0], other[0], atol=1e-4)
                    assert torch.allclose(one[1], other[1], atol=1e-4)


def read(model: Model, prompt: tuple[int, ...]) -> tuple[DynamicCache, torch.Tensor]:
    """Through transformers: its keys and values, and the logits (vocabulary size) after it."""
    cache = DynamicCache()
    logits = model.forward(torch.tensor([prompt]), torch.arange(len(prompt))[None], cache)
    return cache, logits[0, -1]


def test_the_short_way_is_taken_for_what_it_knows_alone(model: Model) -> None:
    shape: dict[str, Any] = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_attention_heads": 2,
    }
    llama = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=1))
    assert Decoder.of(llama) is None
    config: Any = model.weights.config
    changed: Any = GPT2LMHeadModel(config)
    assert Decoder.of(changed) is not None
    changed.transformer.h[0].attn.c_attn = torch.nn.Linear(32, 96)
    assert Decoder.of(changed) is None, "somebody put a layer of another kind in"
