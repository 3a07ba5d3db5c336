"""Mixed precision: what was asked for, what was had, and what happens to a step that overflows."""

from typing import Any

import pytest
import torch

from app.recipe import Recipe
from tests.training.conftest import Train
from worker.training import device
from worker.training.device import Device, choose
from worker.training.failure import Failure
from worker.training.model import Model

CPU = torch.device("cpu")


def in_precision(monkeypatch: pytest.MonkeyPatch, precision: device.Precision) -> None:
    monkeypatch.setattr(device, "choose", lambda _: Device(CPU, precision, None))


@pytest.mark.parametrize("asked", ["fp16", "Native AMP"])
def test_fp16_without_a_gpu_runs_in_fp32_and_says_so(train: Train, asked: str) -> None:
    run = train(max_steps=1, mixed_precision_training=asked)
    assert (run.prepared.precision, run.notices()) == ("fp32", ["precision_unavailable"])
    assert run.prepared.recipe["mixed_precision_training"] == asked


def test_auto_is_what_the_processor_is_fast_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda fast=fast: {"avx512_bf16": fast, "avx2": True}
        )
        assert choose(Recipe()).precision == precision
        assert choose(Recipe(mixed_precision_training="no")).precision == "fp32"


def test_bf16_learns_what_fp32_learns(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    full = train(max_steps=10, out=tmp_path / "full")
    half = train(max_steps=10, mixed_precision_training="bf16", out=tmp_path / "half")
    assert (full.prepared.precision, half.prepared.precision) == ("fp32", "bf16")
    assert half.losses != full.losses
    assert half.losses == pytest.approx(full.losses, rel=0.01)


def test_fp16_learns_with_a_scaled_loss(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    full = train(max_steps=10, out=tmp_path / "full")
    in_precision(monkeypatch, "fp16")
    half = train(max_steps=10, out=tmp_path / "half")
    assert half.losses == pytest.approx(full.losses, rel=0.01)
    assert [s.grad_norm for s in half.steps] == pytest.approx([s.grad_norm for s in full.steps], rel=0.05)


def overflowing(monkeypatch: pytest.MonkeyPatch, times: list[int]) -> None:
    learn, calls = Model.learn, []

    def learned(self: Model, batch: Any, scale: float) -> Any:
        calls.append(1)
        result = learn(self, batch, scale)
        if len(calls) in times:
            self.parameters()[0].grad.fill_(float("inf"))  # type: ignore[union-attr]
        return result

    monkeypatch.setattr(Model, "learn", learned)


def test_a_step_that_overflows_is_skipped_and_reported(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    in_precision(monkeypatch, "fp16")
    overflowing(monkeypatch, [2])
    run = train(max_steps=4, train_batch_size=8, lr_scheduler_warmup_steps=4, lr_scheduler_type="linear")
    assert [s.skipped for s in run.steps] == [False, True, False, False]
    assert run.steps[1].grad_norm is None
    # As in the reference Trainer, the schedule does not advance for an update that did not happen.
    assert [round(s.learning_rate * 4000) for s in run.steps] == [0, 1, 1, 2]


def test_a_resume_keeps_the_loss_scale(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    in_precision(monkeypatch, "fp16")
    overflowing(monkeypatch, [2])
    asked: dict[str, Any] = {"max_steps": 6, "train_batch_size": 8, "save_steps": 3}
    straight = train(**asked, out=tmp_path / "a")
    overflowing(monkeypatch, [])
    resumed = train(**asked, out=tmp_path / "b", resume=(straight.checkpoint(3),))
    assert resumed.losses == straight.losses[3:]
    assert [s.grad_norm for s in resumed.steps] == [s.grad_norm for s in straight.steps[3:]]


def test_overflow_without_end_fails(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    in_precision(monkeypatch, "fp16")
    overflowing(monkeypatch, list(range(1, 100)))
    with pytest.raises(Failure, match="not a finite number at step 33") as caught:
        train(max_steps=60, train_batch_size=8)
    assert caught.value.code == "non_finite"


def test_comparisons_are_made_without_tf32(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rounding alone would pass for a leak, and packing be switched off on every newer GPU."""
    seen: dict[str, list[bool]] = {}

    def watched(name: str) -> None:
        real = getattr(Model, name)

        def watching(self: Model, *given: Any) -> Any:
            seen.setdefault(name, []).append(torch.backends.cuda.matmul.allow_tf32)
            return real(self, *given)

        monkeypatch.setattr(Model, name, watching)

    for name in ("_states", "learn"):
        watched(name)
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    try:
        train(max_steps=1)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    # One to see the head, two at least to see the packing; then a micro-step.
    assert (set(seen["_states"][:3]), seen["_states"][-1], set(seen["learn"])) == ({False}, True, {True})
