"""LoRA on transposed and on plain layers: the base stands still, the merged model is the adapted one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.training.conftest import Train
from worker.training import lora
from worker.training.failure import Failure

RECIPE: dict[str, Any] = {
    "lora_rank": 4,
    "learning_rate": 1e-2,
    "max_steps": 6,
    "save_steps": 3,
    "lora_dropout": 0.1,
}
IDS = torch.arange(1, 21).unsqueeze(0)


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_published_model_is_the_base_with_its_adapter(
    train: Train, family: str, request: pytest.FixtureRequest
) -> None:
    base: Path = request.getfixturevalue(family)
    run = train(model=base, **RECIPE)
    assert "merged" in run.notices()
    merged = AutoModelForCausalLM.from_pretrained(run.model, trust_remote_code=False)
    network = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False)
    plain = logits(network)
    adapted = logits(PeftModel.from_pretrained(network, run.model / "adapter"))
    torch.testing.assert_close(logits(merged), adapted, atol=1e-5, rtol=1e-4)
    assert float((adapted - plain).abs().max()) > 0.01


def test_only_the_adapter_is_trained(train: Train, gpt2: Path) -> None:
    run = train(**RECIPE)
    before, after = load_file(gpt2 / "model.safetensors"), load_file(run.model / "model.safetensors")
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"c_attn", "c_proj", "c_fc"}
    slots = load_file(run.checkpoint(6) / "optimizer.safetensors")
    assert sum(t.numel() for n, t in slots.items() if n.endswith("exp_avg")) < 10_000
    assert run.losses[-1] < run.losses[0]


def test_a_resume_is_exact_to_the_bit(train: Train, tmp_path: Path) -> None:
    straight = train(**RECIPE, out=tmp_path / "a")
    resumed = train(**RECIPE, out=tmp_path / "b", resume=(straight.checkpoint(3),))
    assert resumed.losses == straight.losses[3:]
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (resumed.model / name).read_bytes() == (straight.model / name).read_bytes()


def test_layers_can_be_named_and_a_wrong_name_is_refused(train: Train, tmp_path: Path) -> None:
    run = train(**RECIPE, lora_targets=["c_attn"], lora_alpha=4)
    names = {name.split(".")[-3] for name in load_file(run.model / "adapter" / "adapter_model.safetensors")}
    assert names == {"c_attn"}
    with pytest.raises(Failure) as caught:
        train(**RECIPE, lora_targets=["q_proj"], out=tmp_path / "b")
    assert (caught.value.code, caught.value.param) == ("invalid_value", "lora_targets")


def test_a_merge_that_went_wrong_is_not_published(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    merged = lora.merged

    def wrong(network: Any) -> Any:
        state = merged(network)
        name = next(n for n in state if "c_attn.weight" in n)
        return {**state, name: state[name] * 1.1}

    monkeypatch.setattr(lora, "merged", wrong)
    with pytest.raises(Failure) as caught:
        train(**RECIPE)
    assert caught.value.code == "merge_mismatch"
    assert not (tmp_path / "out" / "model").exists()
