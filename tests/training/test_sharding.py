"""A model in parts on two devices: the numbers, files and manners of one process that holds it whole."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from app.recipe import Recipe, RecipeError
from tests.training.conftest import EXACT, Run, Train, maths, sentences, write_rows
from worker.training import events, manifest, placement
from worker.training.device import Device
from worker.training.job import Job

TORCHRUN = [
    *[sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
    *["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"],
]
# 91 examples are 7 steps of 12 and one of 7: four and three, in threes, so that the second has nothing
# left when the first takes its last. So too of 19 that are evaluated.
EXAMPLES, HELD_OUT = 91, 19
RECIPE: dict[str, Any] = {
    "learning_rate": 1e-3,
    "total_train_batch_size": 12,
    "train_batch_size": 3,
    "eval_batch_size": 3,
    "max_steps": 14,
    "save_steps": 7,
    "eval_steps": 5,
    "max_grad_norm": 0.5,
    "weight_decay": 0.01,
    "sample_prompts": ["the cat", "a dog and"],
    "sample_max_tokens": 5,
}
SHARED: dict[str, Any] = {"num_devices": 2, "sharding": "full"}
HALF = {**RECIPE, "max_steps": 4, "sample_prompts": [], "eval_steps": 100}
# 100 examples: the fourth step has what is left.
SPLIT = {"learning_rate": 1e-3, "total_train_batch_size": 32, "max_steps": 8, "save_steps": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("several")


class Together:
    """Runs of both processes, by name."""

    def __init__(self, folder: Path, log: str) -> None:
        self.folder, self.log = folder, log

    def run(self, name: str, job: Job) -> Run:
        said = self.folder / f"{name}.jsonl"
        assert said.exists(), self.log
        lines = said.read_text().splitlines()
        return Run([events.parse(line) for line in lines], replace(job, out=self.folder / name))


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Path]:
    """Keywords of a job."""
    return {
        name: write_rows(folder / f"{name}.jsonl", [{"text": text} for text in sentences(count, count)])
        for name, count in (("data", EXAMPLES), ("validation", HELD_OUT))
    }


@pytest.fixture(scope="module")
def together(gpt2: Path, llama: Path, data: dict[str, Path], texts: Path, folder: Path) -> Together:
    def line(name: str, model: Path = gpt2, **said: Any) -> dict[str, Any]:
        recipe = {**RECIPE, **SHARED, **EXACT, **said.pop("recipe", {})}
        places = {"model": str(model), **{key: str(path) for key, path in data.items()}}
        return {**places, "recipe": recipe, "out": str(folder / name), "cache": str(folder / "cache"), **said}

    def split(name: str, **said: Any) -> dict[str, Any]:
        recipe = {**SPLIT, **EXACT, "train_batch_size": 4, "num_devices": 2}
        made = line(name, data=str(texts), **said) | {"recipe": recipe}
        return {key: value for key, value in made.items() if key != "validation"}

    half = [str(folder / "gpt2/checkpoints/step-7")]
    jobs = {
        "gpt2": line("gpt2"),
        "llama": line("llama", llama, recipe={"gradient_checkpointing": True}),
        "resumed": line("resumed", resume=half),
        "replicated": line("replicated", resume=half, recipe={"sharding": "none"}),
        "split": split("split"),
        "split-resumed": split("split-resumed", resume=[str(folder / "split/checkpoints/step-4")]),
        "bf16": line("bf16", recipe={**HALF, "mixed_precision_training": "bf16"}),
        "fp16": line("fp16", recipe=HALF),
        "cramped": line("cramped", recipe=HALF),
    }
    (folder / "jobs.json").write_text(json.dumps(jobs))
    program = ["-m", "tests.training.several", str(folder / "jobs.json"), str(folder)]
    done = subprocess.run([*TORCHRUN, *program], capture_output=True, text=True, timeout=280)
    return Together(folder, done.stderr.partition("torch.distributed.elastic")[0][-6000:])


def same(found: Run, whole: Run, rel: float = 2e-5) -> None:
    assert found.losses == pytest.approx(whole.losses, rel=rel)
    norms = [[step.grad_norm for step in run.steps] for run in (found, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=10 * rel)
    assert [e.loss for e in found.evaluations] == pytest.approx([e.loss for e in whole.evaluations], rel=rel)
    assert [s.tokens for s in found.steps] == [s.tokens for s in whole.steps]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_parts_give_the_numbers_and_files_of_the_whole(
    family: str, together: Together, train: Train, job: Job, data: dict[str, Path], request: Any
) -> None:
    whole = train(model=request.getfixturevalue(family), **data, **RECIPE)
    parts = together.run(family, job)
    assert (parts.prepared.recipe["sharding"], whole.prepared.recipe["sharding"]) == ("full", "none")
    same(parts, whole)
    assert min(step.grad_norm or 0 for step in parts.steps) > RECIPE["max_grad_norm"], "nothing is clipped"
    assert [e.samples for e in parts.all(events.Sampled)] == [e.samples for e in whole.all(events.Sampled)]
    for name in ("model", "checkpoints/step-7", "checkpoints/step-14"):
        found, wanted = parts.job.out / name, whole.job.out / name
        assert manifest.verify(found)
        assert sorted(p.name for p in found.iterdir()) == sorted(p.name for p in wanted.iterdir())
        assert (found / "config.json").read_text() == (wanted / "config.json").read_text()
        for file in found.glob("*.safetensors"):
            mine, theirs = load_file(file), load_file(wanted / file.name)
            assert {k: (t.shape, t.dtype) for k, t in mine.items()} == {
                k: (t.shape, t.dtype) for k, t in theirs.items()
            }
    for key, tensor in load_file(parts.model / "model.safetensors").items():
        assert float((tensor - load_file(whole.model / "model.safetensors")[key]).abs().max()) < 1e-4, key


def test_two_processes_of_4x4_are_one_of_32_and_resume_to_the_bit(
    together: Together, train: Train, job: Job
) -> None:
    whole = train(**SPLIT, train_batch_size=32)
    split, resumed = (together.run(name, job) for name in ("split", "split-resumed"))
    assert split.prepared.recipe["sharding"] == "none"
    assert split.losses == pytest.approx(whole.losses, rel=2e-5)
    assert resumed.losses == split.losses[4:]
    assert [run.finished.reason for run in (split, resumed)] == ["completed"] * 2


def test_a_resume_in_parts_gives_the_same_bits(together: Together, job: Job) -> None:
    parts, resumed = together.run("gpt2", job), together.run("resumed", job)
    assert [maths(s) for s in resumed.steps] == [maths(s) for s in parts.steps[7:]]
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (run.checkpoint(14) / name for run in (parts, resumed))
        assert one.read_bytes() == other.read_bytes()


def test_a_checkpoint_of_parts_resumes_whole(
    together: Together, train: Train, job: Job, data: dict[str, Path]
) -> None:
    parts = together.run("gpt2", job)
    for whole in (
        together.run("replicated", job),
        train(resume=(parts.checkpoint(7),), **data, **RECIPE),
    ):
        assert whole.notices() == ["resumed"]
        assert whole.losses == pytest.approx(parts.losses[7:], rel=2e-5)


def test_mixed_precision_in_parts_is_that_of_the_whole(
    together: Together, train: Train, job: Job, data: dict[str, Path], tmp_path: Path
) -> None:
    half = train(mixed_precision_training="bf16", out=tmp_path / "bf16", **data, **HALF)
    parts = together.run("bf16", job)
    assert parts.prepared.precision == "bf16"
    same(parts, half, rel=1e-3)
    parts = together.run("fp16", job)
    assert parts.prepared.precision == "fp16"
    full = train(out=tmp_path / "fp32", **data, **HALF)
    assert parts.losses[:2] == pytest.approx(full.losses[:2], rel=0.01)
    assert parts.losses == pytest.approx(full.losses, rel=0.05)
    assert [(step.skipped, step.grad_norm is None) for step in parts.steps] == [
        (step.step == 2, step.step == 2) for step in parts.steps
    ]


def test_one_process_out_of_memory_ends_all_to_start_again_smaller(together: Together) -> None:
    assert (together.folder / "cramped.status").read_text() == "75", together.log
    said = [(together.folder / f"cramped-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    kinds = [[type(events.parse(line)) for line in lines] for lines in said]
    assert kinds == [[events.Prepared, events.Step], [events.Notice]]
    notice = events.parse(said[1][0])
    assert isinstance(notice, events.Notice)
    assert (notice.code, notice.data["train_batch_size"]) == ("micro_batch_halved", 2)


def test_what_fitted_is_where_the_next_attempt_starts(train: Train) -> None:
    run = train(max_steps=2, train_batch_size=8, fits=2)
    assert run.prepared.recipe["train_batch_size"] == 8
    progress = json.loads((run.checkpoint(2) / "progress.json").read_text())
    assert progress["micro"] == 2


def test_auto_shards_what_a_device_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "capacity", lambda self: 40_000)  # 20,000 for each of two
    one, two = (Device(torch.device("cpu"), "fp32", None, world=world) for world in (1, 2))
    assert [placement.is_in_parts(Recipe(), count, two) for count in (1_000, 1_001)] == [False, True]
    assert not placement.is_in_parts(Recipe(), 10**6, one)
    assert not placement.is_in_parts(Recipe(sharding="none"), 10**6, two)
    assert placement.is_in_parts(Recipe(sharding="full"), 1, two)
    assert [placement.is_in_parts(Recipe(optimizer="sgd"), count, two) for count in (2_000, 2_001)] == [
        False,
        True,
    ]
    for said in ({"optimizer": "adafactor"}, {"lora_rank": 4}):
        assert not placement.is_in_parts(Recipe(**said), 10**6, two)


@pytest.mark.parametrize("said", [{"optimizer": "adafactor"}, {"lora_rank": 4}, {"torch_compile": True}])
def test_what_cannot_be_sharded_is_refused_by_name(said: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="sharding") as caught:
        Recipe.from_request({**said, "sharding": "full"})
    assert caught.value.field == next(iter(said))
