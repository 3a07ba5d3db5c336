"""Preference pairs (DPO): the right loss on the right tokens, and all that supervised training promises."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.encoding import Encoded, EncodingError
from tests.training.conftest import END, EXACT, Run, Train, maths, sentences, write_rows
from worker.training import events
from worker.training.batches import order
from worker.training.failure import Stopped
from worker.training.model import Model
from worker.training.pairs import Answers
from worker.training.pulse import Pulse

TORCHRUN = [
    *[sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
    *["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "worker.training"],
]
Triple = tuple[str, str, str]  # question, better answer, worse answer
BETA = 0.3
# 26 pairs are 4 steps of 6 and one of 2, each taken in twos.
RECIPE: dict[str, Any] = {
    "method": "dpo", "beta": BETA, "total_train_batch_size": 6, "train_batch_size": 2, "max_steps": 8,
    "save_steps": 1,
}  # fmt: skip


def triples(count: int, seed: int) -> list[Triple]:
    """Whoever asks is to be answered in proper order; half the worse answers are longer, half shorter."""
    asked, good, bad = (sentences(count, seed + part) for part in (1, 2, 3))
    return [
        (a[:40], b[:60], " ".join(reversed(c[:60].split()))) for a, b, c in zip(asked, good, bad, strict=True)
    ]


def row(triple: Triple) -> dict[str, Any]:
    question, better, worse = triple
    return {
        "input": {"messages": [{"role": "user", "content": question}]},
        "preferred_output": [{"role": "assistant", "content": better}],
        "non_preferred_output": [{"role": "assistant", "content": worse}],
    }


TRAIN, HELD = triples(26, 0), triples(9, 50)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    train = write_rows(folder / "train.jsonl", [row(t) for t in TRAIN])
    held = write_rows(folder / "held.jsonl", [row(t) for t in HELD])
    return {"data": train, "validation": held, "cache": folder / "cache"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


RUNS: dict[Path, Run] = {}


@pytest.fixture
def straight(train: Train, files: dict[str, Path], kept: Path) -> Run:
    """The uninterrupted run, with a checkpoint after every step; taken once for the whole file."""
    if kept not in RUNS:
        RUNS[kept] = train(**files, out=kept / "straight", eval_steps=4, **RECIPE)
    return RUNS[kept]


class Oracle:
    """The definition, from the paper, in plain torch on whole logits; text laid out by hand."""

    def __init__(self, folder: Path) -> None:
        self.words = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def likelihood(self, network: Any, question: str, answer: str) -> torch.Tensor:
        """log p(answer and end | question), in the template that models without one get."""
        prompt = self.words(f"User: {question}\n\nAssistant:")["input_ids"]
        said = [*self.words(f" {answer}")["input_ids"], self.words.convert_tokens_to_ids(END)]
        logits = network(input_ids=torch.tensor([prompt + said])).logits[0].log_softmax(-1)
        at = torch.arange(len(prompt) - 1, len(prompt) + len(said) - 1)
        found: torch.Tensor = logits[at, torch.tensor(said)].sum()
        return found

    def rewards(self, network: Any, before: Any, triple: Triple) -> torch.Tensor:
        question, *answers = triple
        with torch.no_grad():
            known = [self.likelihood(before, question, answer) for answer in answers]
        found = [self.likelihood(network, question, answer) for answer in answers]
        return BETA * torch.stack([mine - its for mine, its in zip(found, known, strict=True)])


def load(folder: Path) -> Any:
    network: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    return network.eval()


def test_every_step_is_the_papers_on_whole_logits(straight: Run, gpt2: Path) -> None:
    oracle, before, network = Oracle(gpt2), load(gpt2), load(gpt2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0)
    per_epoch = 5
    for number, step in enumerate(straight.steps):
        epoch, at = divmod(number, per_epoch)
        chosen = order(len(TRAIN), 42, epoch)[at * 6 : at * 6 + 6]
        assert len(chosen) == (2 if at == 4 else 6)
        found = torch.stack([oracle.rewards(network, before, TRAIN[i]) for i in chosen])
        loss = -nn.functional.logsigmoid(found[:, 0] - found[:, 1]).mean()
        rewards = found.detach()
        margins = rewards[:, 0] - rewards[:, 1]
        optimizer.param_groups[0]["lr"] = step.learning_rate
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        assert step.loss == pytest.approx(float(loss.detach()), rel=1e-4)
        assert step.grad_norm == pytest.approx(float(norm), rel=1e-3)
        said = step.rewards or {}
        assert said["chosen"] == pytest.approx(float(rewards[:, 0].mean()), abs=1e-4)
        assert said["rejected"] == pytest.approx(float(rewards[:, 1].mean()), abs=1e-4)
        assert said["margin"] == pytest.approx(float(margins.mean()), abs=1e-4)
        if float(margins.abs().min()) > 1e-4:  # the first step's are zero but for rounding
            assert said["accuracy"] == pytest.approx(float((margins > 0).float().mean()))
    assert straight.losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert (straight.steps[-1].rewards or {})["margin"] > 0.05


@pytest.mark.parametrize("lora", [{}, {"lora_rank": 4, "learning_rate": 1e-2}])
def test_what_is_evaluated_is_the_published_model_against_its_base(
    train: Train, files: dict[str, Path], gpt2: Path, lora: dict[str, Any], tmp_path: Path
) -> None:
    run = train(**files, **{**RECIPE, "max_steps": 4, **lora})
    oracle, network = Oracle(gpt2), load(run.model)
    before = load(gpt2)
    if lora:  # what the base is by PEFT's own word
        network = PeftModel.from_pretrained(load(gpt2), run.model / "adapter").eval()
        with network.disable_adapter():
            question, better, _ = HELD[0]
            off = float(oracle.likelihood(network, question, better))
        assert off == pytest.approx(float(oracle.likelihood(before, question, better)), abs=1e-4)
    with torch.no_grad():
        rewards = torch.stack([oracle.rewards(network, before, triple) for triple in HELD])
    margins = rewards[:, 0] - rewards[:, 1]
    last = run.evaluations[-1]
    assert last.loss == pytest.approx(float(-nn.functional.logsigmoid(margins).mean()), rel=1e-4)
    said = last.rewards or {}
    assert said["margin"] == pytest.approx(float(margins.mean()), abs=1e-4)
    assert said["accuracy"] == pytest.approx(float((margins > 0).float().mean()))
    assert (last.accuracy, last.perplexity) == (None, None)
    assert run.saved[-1].metrics["full_valid_reward_margin"] == said["margin"]
    assert (run.model / "chat_template.jinja").is_file()  # a base without one got ours
    card = (run.model / "README.md").read_text()
    assert "by direct preference optimization" in card
    assert f"- beta: {BETA}" in card
    assert "Rewards/margins" in card
    assert "Perplexity" not in card


@pytest.mark.parametrize("said", [{"train_batch_size": 6}, {"train_batch_size": 1}, {"packing": False}])
def test_a_step_does_not_depend_on_its_split(
    train: Train, straight: Run, files: dict[str, Path], said: dict[str, Any], tmp_path: Path
) -> None:
    split = train(**files, **{**RECIPE, "eval_batch_size": 3, "eval_steps": 4, **said})
    assert split.losses == pytest.approx(straight.losses, rel=2e-5)
    norms = [[s.grad_norm for s in run.steps] for run in (split, straight)]  # AdamW forgives a wrong scale
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert [s.trained_tokens for s in split.steps] == [s.trained_tokens for s in straight.steps]
    margins = [[(s.rewards or {})["margin"] for s in run.steps] for run in (split, straight)]
    assert margins[0] == pytest.approx(margins[1], abs=1e-5)
    assert [e.loss for e in split.evaluations] == pytest.approx([e.loss for e in straight.evaluations])


def test_two_processes_take_the_steps_of_one(train: Train, files: dict[str, Path], tmp_path: Path) -> None:
    asked = {
        **RECIPE,
        "total_train_batch_size": 6,
        "max_steps": 4,
        "train_batch_size": 6,
        "learning_rate": 1e-3,
    }
    alone = train(**files, **asked)
    said = {name: value for name, value in asked.items() if name != "method"}
    (tmp_path / "recipe.json").write_text(
        json.dumps({**said, **EXACT, "train_batch_size": 3, "num_devices": 2})
    )
    command = [*TORCHRUN, str(tmp_path / "recipe.json"), "--method", "dpo", "--data", str(files["data"])]
    command += ["--validation", str(files["validation"]), "--model", str(alone.job.model)]
    heard = subprocess.run(
        [*command, "--out", str(tmp_path / "two")], capture_output=True, text=True, timeout=150, check=False
    )
    assert heard.returncode == 0, heard.stderr[-3000:]
    told = [events.parse(line) for line in heard.stdout.splitlines()]
    assert [e.loss for e in told if isinstance(e, events.Step)] == pytest.approx(alone.losses, rel=2e-5)
    rewards = [e.rewards for e in told if isinstance(e, events.Evaluated)]
    assert rewards[-1] == pytest.approx(alone.evaluations[-1].rewards, abs=1e-5)


class StopAt(Pulse):
    """Is asked to stop after so many micro-steps, as if SIGTERM came then."""

    def __init__(self, ticks: int) -> None:
        super().__init__()
        self._left = ticks

    def tick(self) -> None:
        super().tick()
        self._left -= 1
        self.asked = self.asked or self._left == 0


def test_from_every_step_on_a_resume_gives_the_same_bits(
    train: Train, straight: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    whole = load_file(straight.model / "model.safetensors")
    for step in range(1, 8):
        # The odd ones have lost what was measured, and measure the base model again.
        cache = files["cache"] if step % 2 else tmp_path / "elsewhere"
        asked = {**files, **RECIPE, "eval_steps": 4, "save_steps": 100, "cache": cache}
        resumed = train(out=tmp_path / str(step), resume=(straight.checkpoint(step),), **asked)
        assert ("reference" in resumed.notices()) == (step == 2)
        assert [(maths(s), s.rewards) for s in resumed.steps] == [
            (maths(s), s.rewards) for s in straight.steps[step:]
        ]
        again = load_file(resumed.model / "model.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
        assert results(resumed) == results(straight)


def results(run: Run) -> str:
    return (run.model / "README.md").read_text().split("### Training results")[1]


def test_stopped_within_a_step_nothing_but_its_part_is_lost(
    train: Train, straight: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    asked = {**files, **RECIPE, "eval_steps": 4, "save_steps": 100}
    with pytest.raises(Stopped):
        train(StopAt(8), out=tmp_path / "a", **asked)  # three micro-steps a step: in the third
    resumed = train(out=tmp_path / "b", resume=(tmp_path / "a/checkpoints/step-2",), **asked)
    assert [s.loss for s in resumed.steps] == straight.losses[2:]


def test_a_lora_resume_is_exact_to_the_bit(train: Train, files: dict[str, Path], tmp_path: Path) -> None:
    asked = {**files, **RECIPE, "lora_rank": 4, "lora_dropout": 0.1, "max_steps": 5}
    straight = train(out=tmp_path / "a", **asked)
    resumed = train(out=tmp_path / "b", resume=(straight.checkpoint(2),), **asked)
    assert [s.rewards for s in resumed.steps] == [s.rewards for s in straight.steps[2:]]


def test_another_base_model_or_beta_is_another_job(
    train: Train, straight: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    resume = (straight.checkpoint(7),)
    for other in ({"beta": 0.2}, {"model": straight.checkpoint(2)}):
        asked = {**files, **RECIPE, "eval_steps": 4, **other, "max_steps": 8}
        run = train(out=tmp_path / next(iter(other)), resume=resume, **asked)
        assert "checkpoint_foreign" in run.notices()


def test_out_of_memory_halves_pairs_and_changes_no_number(
    train: Train, straight: Run, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    learn, likelihoods = Model.learn, Model.likelihoods

    def cramped(self: Model, batch: Any, scale: float) -> Any:
        found = learn(self, batch, scale)
        if len(batch.reference) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    def measuring(self: Model, batch: Any, examples: int) -> Any:
        if examples > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return likelihoods(self, batch, examples)

    monkeypatch.setattr(Model, "learn", cramped)
    monkeypatch.setattr(Model, "likelihoods", measuring)
    asked = {**files, **RECIPE, "eval_steps": 4, "train_batch_size": 6, "cache": tmp_path / "cache"}
    run = train(**asked)
    assert run.notices().count("micro_batch_halved") == 2  # 6, 3, 2
    assert run.losses == pytest.approx(straight.losses, rel=2e-5)


def test_in_bf16_margins_rise_too(train: Train, files: dict[str, Path]) -> None:
    run = train(**files, **{**RECIPE, "mixed_precision_training": "bf16", "max_steps": 8})
    assert run.prepared.precision == "bf16"
    assert run.losses[0] == pytest.approx(0.693, abs=0.02)
    assert run.losses[-1] < 0.69


def test_early_stopping_keeps_the_best_by_the_pairs_loss(train: Train, files: dict[str, Path]) -> None:
    asked = {**RECIPE, "max_steps": 40, "eval_steps": 2, "learning_rate": 0.05, "early_stopping_patience": 2}
    run = train(**files, keep=2, **asked)
    losses = [e.loss or 0 for e in run.evaluations]
    assert run.finished.reason == "early_stopping"
    assert run.finished.best_loss == min(losses)
    best = load_file(run.checkpoint(run.finished.best_step or 0) / "model.safetensors")
    assert all(torch.equal(t, best[n]) for n, t in load_file(run.model / "model.safetensors").items())


def test_dropout_is_off_unless_asked_for_and_the_rate_is_a_tenth(
    train: Train, files: dict[str, Path]
) -> None:
    said = train(
        **files, **{**RECIPE, "max_steps": 1, "learning_rate": "auto", "beta": "auto"}
    ).prepared.recipe
    assert (said["dropout"], said["beta"], said["excess_length"]) == (0.0, 0.1, "truncate")
    assert said["learning_rate"] == pytest.approx(1e-4)


def test_dropout_that_is_asked_for_is_not_in_what_was_before(
    train: Train, straight: Run, files: dict[str, Path], tmp_path: Path
) -> None:
    noisy = train(**{**files, "cache": tmp_path / "cache"}, **{**RECIPE, "max_steps": 1, "dropout": 0.5})
    assert noisy.losses[0] != pytest.approx(straight.losses[0], abs=1e-3)
    known, again = (
        {path.name: path.read_bytes() for path in cache.rglob("reference-*.bin")}
        for cache in (files["cache"], tmp_path / "cache")
    )
    assert len(again) == 2
    assert again.items() <= known.items()


def test_rows_and_method_must_fit(train: Train, files: dict[str, Path], texts: Path, tmp_path: Path) -> None:
    with pytest.raises(EncodingError, match="line 1: no preference pair"):
        train(data=texts, out=tmp_path / "a", **RECIPE)
    with pytest.raises(EncodingError, match="line 1: a preference pair"):
        train(data=files["data"], out=tmp_path / "b", max_steps=1)


def cut(max_length: int, excess: str, prompt: int, *lengths: int) -> tuple[Answers, list[Any], list[Any]]:
    """One pair of such lengths: prompt tokens count up from 100, those of the answers from 200 and 300."""
    answers, start = Answers(max_length, excess), list(range(100, 100 + prompt))
    both = [
        Encoded(start + list(range(first, first + length)), [(prompt, prompt + length)])
        for first, length in zip((200, 300), lengths, strict=True)
    ]
    answers.add(1, (both[0], both[1]))
    arrays = answers.take()
    ends, tokens, trained = (arrays[name].tolist() for name in ("starts", "tokens", "trained"))
    slices = [slice(0, ends[0]), slice(ends[0], ends[1])] if ends else []
    return answers, [tokens[s] for s in slices], [trained[s] for s in slices]


def test_a_long_prompt_loses_its_beginning_for_both_answers() -> None:
    answers, tokens, trained = cut(10, "truncate", 12, 3, 4)
    assert tokens == [[*range(106, 112), 200, 201, 202], [*range(106, 112), 300, 301, 302, 303]]
    assert trained == [[False] * 6 + [True] * 3, [False] * 6 + [True] * 4]
    assert {k: v for k, v in answers.counts.items() if v} == {
        "rows": 1, "examples": 1, "tokens": 19, "trained_tokens": 7, "too_long": 1, "truncated": 1,
    }  # fmt: skip


def test_an_answer_that_is_too_long_loses_its_end_and_leaves_half_to_the_prompt() -> None:
    answers, tokens, trained = cut(10, "truncate", 12, 20, 2)
    assert tokens == [[*range(107, 112), *range(200, 205)], [*range(107, 112), 300, 301]]
    assert [sum(mask) for mask in trained] == [5, 2]
    assert answers.counts["cut_answers"] == 1
    short, tokens, _ = cut(10, "truncate", 2, 20, 2)
    assert tokens == [[100, 101, *range(200, 208)], [100, 101, 300, 301]]
    assert short.counts["cut_answers"] == 1


def test_long_pairs_are_dropped_or_refused_whole_and_equal_answers_left_out() -> None:
    dropping, tokens, _ = cut(10, "drop", 12, 3, 4)
    assert (dropping.counts["dropped"], tokens) == (1, [])
    with pytest.raises(ValueError, match="line 1: longer than max_length"):
        cut(10, "error", 12, 3, 4)
    same = Answers(10, "truncate")
    same.add(1, (Encoded([1, 2, 3], [(1, 3)]), Encoded([1, 2, 3], [(1, 3)])))
    assert (same.counts["identical"], same.counts["examples"]) == (1, 0)
    assert same.take()["tokens"].tolist() == []


def test_a_split_holds_out_pairs_whole(train: Train, files: dict[str, Path]) -> None:
    run = train(data=files["data"], **{**RECIPE, "validation_split": 0.3, "max_steps": 1})
    assert (run.prepared.examples, run.prepared.validation_examples) == (18, 8)
    assert run.prepared.total_tokens > 0
