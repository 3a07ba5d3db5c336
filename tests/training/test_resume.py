"""Interrupted anywhere, the result is the same to the last bit."""

import hashlib
import json
import shutil
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import Run, Train, maths
from worker.training import checkpoint, manifest
from worker.training.failure import Stopped
from worker.training.pulse import Pulse

# 95 examples are 10 steps of 9 and one of 5, each taken in threes; 20 steps cross an epoch. Dropout is on.
RECIPE: dict[str, Any] = {
    "total_train_batch_size": 9,
    "train_batch_size": 3,
    "max_steps": 20,
    "save_steps": 1,
    "eval_steps": 5,
    "validation_split": 0.05,
    "dropout": 0.1,
    "weight_decay": 0.01,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_warmup_steps": 4,
}
SAVING_NOTHING = {**RECIPE, "save_steps": 100}  # but the last
MICRO_STEPS = [2 if step == 11 else 3 for step in range(1, 21)]


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


class StopAt(Pulse):
    """Is asked to stop after so many micro-steps, as if SIGTERM came then."""

    def __init__(self, ticks: int) -> None:
        super().__init__()
        self._left = ticks

    def tick(self) -> None:
        super().tick()
        self._left -= 1
        self.asked = self.asked or self._left == 0


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


RUNS: dict[Path, Run] = {}


@pytest.fixture
def straight(train: Train, kept: Path) -> Run:
    """The uninterrupted run, with a checkpoint after every step; taken once for the whole file."""
    if kept not in RUNS:
        RUNS[kept] = train(out=kept / "straight", cache=kept / "cache", **RECIPE)
    assert len(RUNS[kept].steps) == 20
    return RUNS[kept]


def test_from_every_step_on_a_resume_gives_the_same_bits(train: Train, straight: Run, tmp_path: Path) -> None:
    cache = straight.job.cache
    for step in range(1, 20):
        out = tmp_path / str(step)
        resumed = train(out=out, cache=cache, resume=(straight.checkpoint(step),), **SAVING_NOTHING)
        assert [maths(s) for s in resumed.steps] == [maths(s) for s in straight.steps[step:]]
        assert weights(resumed.model) == weights(straight.model)
        assert [e.loss for e in resumed.evaluations] == [
            e.loss for e in straight.evaluations if e.step > step
        ]
        # The card is whole: evaluations before the interruption are in it.
        assert results(resumed) == results(straight)
        shutil.rmtree(out)


def results(run: Run) -> str:
    return (run.model / "README.md").read_text().split("### Training results")[1]


def test_stopped_in_the_middle_of_a_step_nothing_but_its_part_is_lost(
    train: Train, straight: Run, tmp_path: Path
) -> None:
    cache = straight.job.cache
    for ticks in (1, 2, 3, 20, 30, 31, 32, 33, 58):
        out = tmp_path / str(ticks)
        with pytest.raises(Stopped):
            train(StopAt(ticks), out=out, cache=cache, **SAVING_NOTHING)
        saved = manifest.checkpoints(out / "checkpoints")
        whole = sum(micro_steps <= ticks for micro_steps in accumulate(MICRO_STEPS))
        assert [step for step, _ in saved] == ([whole] if whole else [])
        resume = tuple(path for _, path in saved)
        resumed = train(out=out, cache=cache, resume=resume, **SAVING_NOTHING)
        assert weights(resumed.model) == weights(straight.model)


def test_a_damaged_newest_checkpoint_falls_back_and_says_so(
    train: Train, straight: Run, tmp_path: Path
) -> None:
    for name, damage in DAMAGES.items():
        newest, before = tmp_path / name / "step-12", tmp_path / name / "step-11"
        shutil.copytree(straight.checkpoint(12), newest)
        shutil.copytree(straight.checkpoint(11), before)
        damage(newest)
        out = tmp_path / name / "out"
        resumed = train(out=out, cache=straight.job.cache, resume=(newest, before), **SAVING_NOTHING)
        assert resumed.notices()[:2] == ["checkpoint_corrupt", "resumed"], name
        assert resumed.steps[0].step == 12
        assert weights(resumed.model) == weights(straight.model)


def flip_a_bit(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip_a_bit,
    "cut": lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
    "missing": lambda folder: (folder / "progress.json").unlink(),
    "manifest": lambda folder: (folder / "manifest.json").write_text("{"),
    "stranger": lambda folder: (folder / "evil.py").write_text("import os"),
}


def test_without_a_usable_checkpoint_it_starts_again_and_says_so(train: Train, tmp_path: Path) -> None:
    run = train(max_steps=2, resume=(tmp_path / "step-7",))
    assert run.notices() == ["checkpoint_corrupt", "no_checkpoint"]
    assert run.steps[0].step == 1


def test_a_checkpoint_of_another_recipe_is_not_resumed(train: Train, straight: Run, tmp_path: Path) -> None:
    asked = {**RECIPE, "seed": 7}
    run = train(out=tmp_path / "o", resume=(straight.checkpoint(19),), **asked)
    assert run.notices() == ["checkpoint_foreign", "no_checkpoint"]
    assert len(run.steps) == 20


def test_other_speed_knobs_may_change_between_attempts(train: Train, straight: Run, tmp_path: Path) -> None:
    asked = {**RECIPE, "train_batch_size": 9, "save_steps": 7, "packing": False}
    run = train(out=tmp_path / "o", resume=(straight.checkpoint(18),), cache=straight.job.cache, **asked)
    assert [s.loss for s in run.steps] == pytest.approx([s.loss for s in straight.steps[18:]], rel=0.05)


def test_every_checkpoint_is_a_model_folder(straight: Run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = straight.checkpoint(10)
    network: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    words = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    assert network.generate(**words("the cat", return_tensors="pt"), max_new_tokens=3).shape[1] > 2
    assert manifest.verify(folder)
    assert not list(folder.glob("*.pt")) + list(folder.glob("*.bin")) + list(folder.glob("*.pkl"))


def test_old_checkpoints_go_but_never_the_last_ones_nor_the_best(train: Train, tmp_path: Path) -> None:
    asked = {
        **RECIPE,
        "load_best_model_at_end": True,
        "learning_rate": 0.05,
        "max_steps": 10,
        "eval_steps": 2,
    }
    run = train(keep=2, out=tmp_path / "o", **asked)
    left = [step for step, _ in manifest.checkpoints(run.job.out / "checkpoints")]
    best = run.finished.best_step or 0
    assert left == sorted({9, 10, best})
    assert weights(run.model) == weights(run.checkpoint(best))


def test_without_a_limit_nothing_is_deleted(straight: Run) -> None:
    assert [step for step, _ in manifest.checkpoints(straight.job.out / "checkpoints")] == list(range(1, 21))
    assert [(s.step, s.final) for s in straight.saved] == [(n, n == 20) for n in range(1, 21)]


def test_a_disk_that_fills_up_ends_the_job_and_spares_what_was_saved(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal, calls = manifest.seal, []

    def full(folder: Path, facts: Any = None) -> Any:
        calls.append(folder)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return seal(folder, facts)

    monkeypatch.setattr(manifest, "seal", full)
    with pytest.raises(OSError, match="No space"):
        train(out=tmp_path / "o", **RECIPE)
    folder = tmp_path / "o" / "checkpoints"
    assert [step for step, path in manifest.checkpoints(folder) if manifest.verify(path)] == [1, 2, 3]
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_a_save_does_not_see_what_the_loop_does_next(train: Train, straight: Run, tmp_path: Path) -> None:
    """The writer works from a copy: held back until the end, it still writes the weights of its step."""
    write, waiting = checkpoint.Saver._write, []

    def late(self: checkpoint.Saver, snapshot: Any, *rest: Any) -> Any:
        import time

        waiting.append(1)
        time.sleep(0.3)
        return write(self, snapshot, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Saver, "_write", late)
        run = train(out=tmp_path / "o", cache=straight.job.cache, **{**RECIPE, "save_steps": 10})
    assert len(waiting) >= 2
    assert weights(run.checkpoint(10)) == weights(straight.checkpoint(10))


def test_progress_says_everything_and_nothing_odd(straight: Run) -> None:
    said = json.loads((straight.checkpoint(10) / "progress.json").read_text())
    assert set(said) == set(checkpoint.Progress.__dataclass_fields__)
    assert (said["step"], len(said["evaluations"])) == (10, 2)
