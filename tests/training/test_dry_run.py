"""A dry run tells what the trainer then states: the same counts, the same recipe, the same plan."""

from pathlib import Path
from typing import Any

import pytest

from app import rehearsal, weights
from app.inspection import tally
from app.recipe import Recipe
from app.rehearsal import Look
from tests.training.conftest import sentences, write_rows
from worker.training.events import Prepared
from worker.training.job import Job
from worker.training.prepare import prepare
from worker.training.pulse import Pulse

LONG = [{"text": " ".join(sentences(8, seed=seed))} for seed in range(30)]
SHORT = [{"text": "a cat sees the sun."}] * 9
PAIRS = [{"prompt": text, "completion": f" {text[:40]}"} for text in sentences(50)]
CHATS = [
    {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}]}
    for text in sentences(40)
]
CASES: dict[str, tuple[list[Any] | None, dict[str, Any]]] = {
    "all on auto": (None, {}),
    "long rows split": (LONG, {"max_length": 32}),
    "long rows truncated": (LONG, {"max_length": 32, "excess_length": "truncate"}),
    "long rows dropped": ([*LONG, *SHORT], {"max_length": 32, "excess_length": "drop"}),
    "prompts and completions": (PAIRS, {"num_epochs": 1.5}),
    "inputs trained too": (PAIRS, {"train_on_inputs": True}),
    "messages": (CHATS, {"total_train_batch_size": 4, "lr_scheduler_warmup_ratio": 0.1}),
    "a share held out": (None, {"validation_split": 0.2, "eval_batch_size": 2}),
    "so many steps": (None, {"max_steps": 7, "lr_scheduler_warmup_steps": "auto"}),
    "LoRA": (None, {"lora_rank": 4, "learning_rate_multiplier": 2.0}),
    "batches cut small": (None, {"train_batch_size": 2, "gradient_accumulation_steps": 3}),
}  # fmt: skip


def said(path: Path, folder: Path) -> dict[str, Any]:
    rows = len(path.read_text().splitlines())
    return {"path": str(path), "format": "jsonl", "columns": None, "folder": str(folder), "rows": rows}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_a_dry_run_tells_what_the_trainer_states(
    request: pytest.FixtureRequest,
    model: str,
    case: tuple[list[Any] | None, dict[str, Any]],
    texts: Path,
    tmp_path: Path,
) -> None:
    rows, asked = case
    folder: Path = request.getfixturevalue(model)
    recipe = Recipe.from_request(asked)
    data = texts if rows is None else write_rows(tmp_path / "rows.jsonl", rows)
    job = Job(recipe=recipe, data=data, format="jsonl", model=folder, out=tmp_path / "out")
    stated = next(event for event in prepare(job, Pulse()) if isinstance(event, Prepared))
    look = Look(tally.make(said(data, folder), recipe), None)
    told = rehearsal.rehearse(recipe, "folder:x", look, weights.measure(folder), [], None)
    held_out = "validation_split" in asked  # which rows, the trainer draws
    assert told["exact"] is not held_out
    assert told["recipe"] == stated.recipe
    same = ("examples", "validation_examples", "total_steps", "steps_per_epoch", "parameters")
    assert {name: told[name] for name in same} == {name: getattr(stated, name) for name in same}
    for name in ("total_tokens", "trained_tokens"):
        assert told[name] == pytest.approx(getattr(stated, name), rel=0.25 if held_out else 0)
    assert told["counts"] == {name: stated.counts[name] for name in told["counts"]}


def test_a_validation_file_is_counted_too(gpt2: Path, texts: Path, held_out: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_request({})
    job = Job(
        recipe=recipe, data=texts, format="jsonl", model=gpt2, out=tmp_path, validation=held_out
    )  # fmt: skip
    stated = next(event for event in prepare(job, Pulse()) if isinstance(event, Prepared))
    look = Look(tally.make(said(texts, gpt2), recipe), tally.make(said(held_out, gpt2), recipe))
    told = rehearsal.rehearse(recipe, "folder:x", look, weights.measure(gpt2), [], None)
    assert (told["validation_examples"], told["recipe"]) == (stated.validation_examples, stated.recipe)


def test_of_a_large_file_the_counts_are_extrapolated(
    gpt2: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tally.make(said(texts, gpt2), Recipe())
    monkeypatch.setattr(tally, "TOKEN_BYTES", texts.stat().st_size // 4)
    part = tally.make(said(texts, gpt2), Recipe())
    assert not part["exact"]
    for name in ("rows", "examples", "tokens", "trained_tokens"):
        assert part["counts"][name] == pytest.approx(whole["counts"][name], rel=0.3)


def test_what_lora_trains_is_counted_from_the_headers(gpt2: Path, llama: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for folder in (gpt2, llama):
        network = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
        adapted = get_peft_model(network, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert weights.measure(folder).adapter(4, "auto") == trained
