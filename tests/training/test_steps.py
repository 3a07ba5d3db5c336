"""What a step means: not its split, not its layout, not the devices."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from app.encoding import Encoder
from app.recipe import Recipe
from tests.training.conftest import Run, Train, sentences, write_rows
from worker.training import model
from worker.training.batches import Layout, lay
from worker.training.data import encode
from worker.training.device import Device
from worker.training.model import Model

CPU = Device(torch.device("cpu"), "fp32", None)


@pytest.fixture
def whole(train: Train) -> Run:
    return train(train_batch_size=32, total_train_batch_size=32, max_steps=8)


@pytest.mark.parametrize("said", [{"train_batch_size": 8}, {"train_batch_size": 4, "packing": False}])
def test_losses_do_not_depend_on_the_split(
    train: Train, whole: Run, said: dict[str, Any], tmp_path: Path
) -> None:
    split = train(total_train_batch_size=32, max_steps=8, out=tmp_path / "split", **said)
    assert split.losses == pytest.approx(whole.losses, rel=2e-5)
    assert [s.tokens for s in split.steps] == [s.tokens for s in whole.steps]
    # 100 examples at 32 a step: the fourth step has what is left, and counts what it has.
    assert whole.steps[3].tokens < 0.4 * whole.steps[2].tokens


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("layout", ["line", "rows"])
def test_packed_documents_are_isolated_exactly(
    family: str, layout: Layout, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(family)
    encoder = Encoder.load(folder)
    path = write_rows(tmp_path / "rows.jsonl", [{"text": t} for t in sentences(24)])
    encoded = encode(path, "jsonl", encoder, Recipe(), 64, tmp_path, lambda: None)
    network = model.load(folder, Recipe(), CPU)
    trained = Model(network, CPU, Recipe())
    assert trained.prepare(Recipe()) == []
    assert trained.layout == "line"
    trained._choose(layout)
    examples = [encoded.example(i) for i in range(24)]
    packed = lay(examples, layout, 64, encoder.end)
    assert packed.positions is not None
    losses = nn.functional.cross_entropy(
        network.lm_head(trained._hidden(packed)), packed.targets, reduction="none"
    )
    flat = packed.ids.reshape(-1)
    starts = (packed.positions.reshape(-1) == 0).nonzero().flatten().tolist()
    means = {}
    for start, stop in pairwise([*starts, len(flat)]):
        here = (packed.sources >= start) & (packed.sources < stop)
        means[tuple(flat[start:stop].tolist())] = float(losses[here].mean())
    for tokens, _ in examples:
        ids = torch.from_numpy(tokens.astype("int64")).unsqueeze(0)
        alone = float(network(input_ids=ids, labels=ids).loss)
        assert means[tuple(tokens.tolist())] == pytest.approx(alone, abs=1e-5)


def test_a_layout_that_leaks_is_noticed_and_switched_off(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = Model(model.load(gpt2, Recipe(), CPU), CPU, Recipe())
    body = trained._body
    # Without its documents a line is one text; with a cache, restarting positions isolate nothing.
    leaking = {"use_cache": True, "documents": None}
    monkeypatch.setattr(trained, "_body", lambda **said: body(**{**said, **leaking}))
    assert trained.prepare(Recipe()) == ["packing"]
    assert trained.packing is False


def test_out_of_memory_halves_the_micro_batch_and_changes_no_number(
    train: Train, whole: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    learn, seen = Model.learn, []

    def cramped(self: Model, batch: Any, scale: float) -> Any:
        seen.append(batch.tokens)
        result = learn(self, batch, scale)
        if batch.tokens > 150:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return result

    monkeypatch.setattr(Model, "learn", cramped)
    asked = {"total_train_batch_size": 32, "max_steps": 8, "save_steps": 4}
    short = train(train_batch_size=32, out=tmp_path / "short", **asked)
    assert short.notices().count("micro_batch_halved") == 3  # 32, 16, 8, 4
    assert short.losses == pytest.approx(whole.losses, rel=2e-5)
    resumed = train(train_batch_size=32, out=tmp_path / "again", resume=(short.checkpoint(4),), **asked)
    assert "micro_batch_halved" not in resumed.notices()
    assert resumed.losses == short.losses[4:]


def test_one_example_that_does_not_fit_is_out_of_memory(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )

    monkeypatch.setattr(Model, "learn", never)
    with pytest.raises(MemoryError):
        train(max_steps=2)


def test_clipping_scales_the_gradient_down(train: Train, tmp_path: Path) -> None:
    free = train(max_steps=3, max_grad_norm=0, optimizer="sgd", out=tmp_path / "a")
    clipped = train(max_steps=3, max_grad_norm=0.01, optimizer="sgd", out=tmp_path / "b")
    assert free.steps[0].grad_norm == clipped.steps[0].grad_norm
    before = load_file(free.job.model / "model.safetensors")
    moved = [
        sum(
            float((t - before[n]).square().sum())
            for n, t in load_file(run.model / "model.safetensors").items()
        )
        for run in (free, clipped)
    ]
    assert moved[1] ** 0.5 <= 3 * 1e-3 * 0.01 < moved[0] ** 0.5


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
def test_every_optimizer_learns_and_weight_decay_pulls(train: Train, optimizer: str, tmp_path: Path) -> None:
    rate = 0.5 if optimizer == "sgd" else 5e-3
    plain = train(max_steps=12, optimizer=optimizer, learning_rate=rate, out=tmp_path / "plain")
    assert plain.losses[-1] < plain.losses[0]
    decayed = train(
        max_steps=12, optimizer=optimizer, learning_rate=rate, weight_decay=0.5, out=tmp_path / "d"
    )
    norms = [
        load_file(r.model / "model.safetensors")["transformer.wte.weight"].norm() for r in (plain, decayed)
    ]
    assert norms[1] < norms[0]


def test_dropout_is_the_recipes(train: Train, gpt2: Path, tmp_path: Path) -> None:
    plain = train(max_steps=2, out=tmp_path / "plain")
    dropped = train(max_steps=2, dropout=0.5, out=tmp_path / "dropped")
    assert dropped.losses[0] != plain.losses[0]
    config = AutoModelForCausalLM.from_pretrained(dropped.model, trust_remote_code=False).config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.5, 0.5, 0.5)
    assert AutoModelForCausalLM.from_pretrained(gpt2, trust_remote_code=False).config.resid_pdrop == 0


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("constant_with_warmup", [0, 0.5, 1, 1, 1, 1]),
        ("cosine", [0, 0.5, 1, 0.853553, 0.5, 0.146447]),
        ("cosine_with_min_lr", [0, 0.5, 1, 0.868198, 0.55, 0.231802]),
    ],
)
def test_schedules_rise_and_fall_as_named(train: Train, kind: str, rates: list[float]) -> None:
    run = train(max_steps=6, lr_scheduler_type=kind, lr_scheduler_warmup_steps=2)
    assert [step.learning_rate * 1e3 for step in run.steps] == pytest.approx(rates, abs=1e-5)


def test_what_was_auto_is_told_resolved(train: Train) -> None:
    resolved = train(max_steps=1, learning_rate="auto", lr_scheduler_warmup_ratio=0.5).prepared.recipe
    assert [name for name, value in resolved.items() if value == "auto" and name not in UNRESOLVED] == []
    assert resolved["total_train_batch_size"] == resolved["train_batch_size"] == 8
    assert resolved["learning_rate"] == pytest.approx(1e-3)
    assert (resolved["max_length"], resolved["lr_scheduler_warmup_steps"]) == (64, 1)


UNRESOLVED = ("mixed_precision_training", "dropout", "lora_targets")  # what the model or the device says
