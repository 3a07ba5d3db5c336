"""The same rows in the same order, by us and by Hugging Face's Trainer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from tests.training.conftest import Run, Train
from worker.training.batches import order

CARD: dict[str, Any] = {
    "learning_rate": 0.0005,
    "train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "total_train_batch_size": 8,
    "seed": 42,
    "optimizer": "Adam with betas=(0.9,0.999) and epsilon=1e-08",
    "lr_scheduler_type": "cosine",
    "lr_scheduler_warmup_steps": 10,
    "num_epochs": 4,
    "mixed_precision_training": "no",
}


class Rows(Dataset[list[int]]):
    def __init__(self, file: Path, folder: Path) -> None:
        words = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.end = words.eos_token_id
        lines = file.read_text().splitlines()
        self._ids = [words(json.loads(line)["text"])["input_ids"] + [self.end] for line in lines]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> list[int]:
        return list(self._ids[index])

    def collate(self, rows: list[list[int]]) -> dict[str, Tensor]:
        """Padding is masked by position: the end token is padding too. So is the first token of a row:
        nothing predicts it, yet the Trainer divides by it where it counts labels before they are shifted."""
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.end)
        labels = torch.full((len(rows), width), -100)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            labels[i, 1 : len(row)] = torch.tensor(row[1:])
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "labels": labels, "attention_mask": mask}


class OurOrder(Sampler[int]):
    """Epoch after epoch in the order that our trainer takes."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed, self._epoch = count, seed, 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        self._epoch += 1
        return iter(int(i) for i in order(self._count, self._seed, self._epoch - 1))


@dataclass
class Log(TrainerCallback):
    rates: list[float] = field(default_factory=list)

    def on_pre_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        self.rates.append(float(optimizer.param_groups[0]["lr"]))


class Theirs(Trainer):
    def _get_train_sampler(self, *_: Any) -> OurOrder:
        return OurOrder(len(self.train_dataset), 42)  # type: ignore[arg-type]


@dataclass
class Reference:
    losses: list[float]
    norms: list[float]
    rates: list[float]
    model: Any
    rows: Rows


@pytest.fixture(scope="module")
def reference(gpt2: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    rows, log = Rows(texts, gpt2), Log()
    model = AutoModelForCausalLM.from_pretrained(gpt2, trust_remote_code=False)
    arguments = TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("theirs")), learning_rate=0.0005,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2, seed=42, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8,
        lr_scheduler_type="cosine", warmup_steps=10, num_train_epochs=4, logging_steps=1, save_strategy="no",
        report_to=[], use_cpu=True, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = Theirs(
        model=model, args=arguments, train_dataset=rows, data_collator=rows.collate, callbacks=[log]
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Reference([s["loss"] for s in steps], [s["grad_norm"] for s in steps], log.rates, model, rows)


@pytest.fixture
def ours(train: Train) -> Run:
    return train(**CARD, packing=False)


def test_losses_rates_and_norms_equal_the_reference_trainers(ours: Run, reference: Reference) -> None:
    assert len(ours.steps) == len(reference.losses) == 52
    assert ours.losses == pytest.approx(reference.losses, rel=1e-4)
    assert [s.grad_norm for s in ours.steps] == pytest.approx(reference.norms, rel=1e-4)
    assert [s.learning_rate for s in ours.steps] == pytest.approx(reference.rates, rel=1e-6)
    assert ours.losses[-1] < ours.losses[0] - 0.5


def test_packed_they_are_the_same(train: Train, reference: Reference) -> None:
    packed = train(**CARD, packing=True)
    assert packed.losses == pytest.approx(reference.losses, rel=1e-4)


def test_the_evaluation_loss_is_the_token_mean_of_the_trainers_model(
    train: Train, held_out: Path, gpt2: Path, reference: Reference
) -> None:
    ours = train(**CARD, validation=held_out, eval_batch_size=3)
    rows = Rows(held_out, gpt2)
    loss = tokens = 0.0
    reference.model.eval()
    for i in range(len(rows)):
        batch = rows.collate([rows[i]])
        with torch.no_grad():
            mean = reference.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        loss, tokens = loss + float(mean) * (len(rows[i]) - 1), tokens + len(rows[i]) - 1
    last = ours.evaluations[-1]
    assert last.tokens == tokens
    assert last.loss == pytest.approx(loss / tokens, rel=1e-4)
