"""Evaluation, early stopping, the best checkpoint, samples, and numbers that are none."""

from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import Train, write_rows
from worker.training import verdict
from worker.training.events import Evaluated, Sampled
from worker.training.failure import Failure
from worker.training.model import Model


def losses(monkeypatch: pytest.MonkeyPatch, given: list[float]) -> None:
    """Evaluations with these results, one after the other."""
    left = iter(given)

    def evaluated(_m: Any, _d: Any, _s: int, _l: int, step: int, epoch: float, _b: Any) -> Evaluated:
        return Evaluated(step, epoch, next(left), 1.0, 0.5, 10)

    monkeypatch.setattr(verdict, "evaluate", evaluated)


EARLY = {"max_steps": 20, "eval_steps": 2, "save_steps": 100, "validation_split": 0.1}


@pytest.mark.parametrize(
    ("said", "given", "last", "best"),
    [
        ({"early_stopping_patience": 2}, [5, 4, 4.5, 4.2, 1], 8, 4),
        ({"early_stopping_patience": 2}, [5, 4, 4.5, 3, 4, 4, 1], 12, 8),
        ({"early_stopping_patience": 2, "early_stopping_min_delta": 0.5}, [5, 4.8, 4.6, 1], 6, 2),
        ({"early_stopping_patience": 1, "early_stopping_warmup": 3}, [5, 6, 7, 8, 1], 8, 2),
    ],
)
def test_early_stopping_waits_as_long_as_it_was_told(
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    said: dict[str, Any],
    given: list[float],
    last: int,
    best: int,
) -> None:
    losses(monkeypatch, given)
    run = train(**EARLY, **said)
    assert (run.finished.step, run.finished.reason, run.finished.best_step) == (last, "early_stopping", best)
    assert [s.step for s in run.saved if s.best] == [e.step for e in bests(run.evaluations, said)]


def bests(evaluations: list[Evaluated], said: dict[str, Any]) -> list[Evaluated]:
    found: list[Evaluated] = []
    for event in evaluations:
        best = found[-1].loss or 0 if found else 1e9
        if (event.loss or 0) < best - said.get("early_stopping_min_delta", 0):
            found.append(event)
    return found


def test_the_best_checkpoint_is_published_where_that_was_asked(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for asked, step in ((True, 4), (False, 8)):
        losses(monkeypatch, [5, 4, 6, 7])
        run = train(
            **{**EARLY, "max_steps": 8, "save_steps": 2},
            load_best_model_at_end=asked,
            out=tmp_path / str(asked),
        )
        published = (run.model / "model.safetensors").read_bytes()
        assert published == (run.checkpoint(step) / "model.safetensors").read_bytes()
        assert run.finished.best_step == 4


@pytest.mark.parametrize("name", ["early_stopping_patience", "load_best_model_at_end"])
def test_keeping_the_best_needs_something_to_judge_by(train: Train, name: str) -> None:
    with pytest.raises(Failure) as caught:
        train(max_steps=2, **{name: 1 if "patience" in name else True})
    assert (caught.value.code, caught.value.param) == ("contradictory_value", name)


def test_the_evaluation_does_not_depend_on_its_batches(train: Train, held_out: Path, tmp_path: Path) -> None:
    found = [
        train(max_steps=2, validation=held_out, eval_batch_size=size, out=tmp_path / str(size)).evaluations[
            -1
        ]
        for size in (1, 7, 100)
    ]
    assert [e.loss for e in found] == pytest.approx([found[0].loss] * 3, rel=1e-5)
    assert len({e.accuracy for e in found}) == 1
    assert found[0].perplexity == pytest.approx(2.718281828 ** (found[0].loss or 0), rel=1e-6)


def test_evaluating_changes_nothing(train: Train, held_out: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"max_steps": 6, "dropout": 0.1, "save_steps": 100}
    plain = train(**asked, out=tmp_path / "plain")
    watched = train(
        **asked, out=tmp_path / "watched", validation=held_out, eval_steps=1, sample_prompts=["the cat"]
    )
    assert watched.losses == plain.losses
    assert [e.step for e in watched.evaluations] == [1, 2, 3, 4, 5, 6]


def test_a_trained_model_ends_its_samples_by_itself(train: Train, tmp_path: Path) -> None:
    """The end token is learned: the classic fault of masking it as padding would never end."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": "the cat sees one red fish."}] * 64)
    run = train(
        data=rows,
        max_steps=80,
        learning_rate=1e-2,
        eval_steps=40,
        sample_prompts=["the cat", "the"],
        packing=True,
    )
    first, last = run.all(Sampled)
    assert last.ended_share == 1.0
    assert [s["text"] for s in last.samples] == [" sees one red fish.", " cat sees one red fish."]
    assert (first.step, last.step) == (40, 80)


def test_a_loss_that_is_no_number_ends_the_job_before_the_weights_take_harm(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, calls = Model.learn, []

    def broken(self: Model, batch: Any, scale: float) -> Any:
        calls.append(1)
        return learn(self, batch, scale) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(Model, "learn", broken)
    with pytest.raises(Failure) as caught:
        train(max_steps=5, train_batch_size=8)
    assert (caught.value.code, caught.value.exit_status) == ("non_finite", 80)
    assert "step 3" in caught.value.message
    assert "learning_rate" in caught.value.message


def test_max_runtime_saves_and_says_so(train: Train, tmp_path: Path) -> None:
    from worker.training import manifest

    with pytest.raises(Failure) as caught:
        train(max_steps=100_000, max_runtime=1, save_steps=100_000)
    assert (caught.value.code, caught.value.exit_status) == ("max_runtime_exceeded", 81)
    [(step, path)] = manifest.checkpoints(tmp_path / "out" / "checkpoints")
    assert step > 0
    assert manifest.verify(path)


def test_the_card_has_the_form_of_the_reference(train: Train, held_out: Path) -> None:
    run = train(
        max_steps=4, eval_steps=2, validation=held_out, learning_rate=0.0005, train_batch_size=4,
        gradient_accumulation_steps=2, lr_scheduler_type="cosine", lr_scheduler_warmup_steps=1,
    )  # fmt: skip
    text = (run.model / "README.md").read_text()
    for line in (
        "- learning_rate: 0.0005\n- train_batch_size: 4\n- eval_batch_size: 4\n- seed: 42\n",
        "- gradient_accumulation_steps: 2\n- total_train_batch_size: 8\n",
        "- optimizer: Adam with betas=(0.9,0.999) and epsilon=1e-08\n- lr_scheduler_type: cosine\n",
        "- lr_scheduler_warmup_steps: 1\n- training_steps: 4\n",
        "| Training Loss | Epoch  | Step | Validation Loss | Accuracy |\n",
        "### Framework versions",
    ):
        assert line in text
    rows = [row for row in text.splitlines() if row.startswith("| ")][1:]
    assert [row.split("|")[3].strip() for row in rows] == ["2", "4"]
    assert f"{run.evaluations[-1].loss:.4f}" in rows[-1]


def test_a_name_cannot_write_into_the_card(train: Train) -> None:
    run = train(max_steps=1, name="a](http://x)\n---\n# b", base_name="x\n<script>")
    text = (run.model / "README.md").read_text()
    assert "\n# b" not in text
    assert "<script>" not in text.split("---")[2]
    assert text.count("\n---\n") == 1
