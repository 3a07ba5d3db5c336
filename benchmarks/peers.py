"""The others, set up as their own documentation does, and the model they all train."""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import torch


def build(folder: Path, positions: int) -> Path:
    """GPT-2 of 4 layers x 256, random weights, GPT-2's width of vocabulary and the built-in tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from app.tiny import model as tiny

    base = tiny.ensure(folder.parent / "tiny-gpt2")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50_257,
        n_layer=4,
        n_embd=256,
        n_head=4,
        n_positions=positions,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


def flops_per_token(folder: Path, length: int) -> float:
    """Forward and backward: 6 for each weight of a matrix product, and attention's two products over the
    tokens before, half of `length` on average. Embeddings are looked up, not multiplied."""
    config = json.loads((folder / "config.json").read_text())
    layers = config.get("n_layer") or config["num_hidden_layers"]
    width = config.get("n_embd") or config["hidden_size"]
    weights = layers * 12 * width * width + config["vocab_size"] * width
    return float(6 * weights + 12 * layers * width * length / 2)


class Texts(torch.utils.data.Dataset[dict[str, Any]]):
    """The rows, tokenised beforehand with the end token, as lists; `length` serves grouping."""

    def __init__(self, asked: argparse.Namespace) -> None:
        from transformers import AutoTokenizer

        words = AutoTokenizer.from_pretrained(asked.model, trust_remote_code=False)
        texts = [json.loads(line)["text"] for line in asked.data.read_text().splitlines()]
        self.end = words.eos_token_id
        ids = words(texts)["input_ids"]
        self.rows = [{"input_ids": [*row, self.end][: asked.max_length]} for row in ids]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Dynamic padding to the longest of the batch, masked by position."""
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), width), self.end)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            mask[i, : len(row["input_ids"])] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def clock(asked: argparse.Namespace) -> Any:
    """A callback that counts real tokens between the first step and the end of the time given."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        began = ended = 0.0
        tokens = 0
        seen = 0

        def count(self, tokens: int) -> None:
            self.seen += tokens

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            self.ended = time.perf_counter()
            if not self.began:
                self.began, self.seen = self.ended, 0
            self.tokens = self.seen
            control.should_training_stop = self.ended - self.began > asked.seconds
            return control

    return Clock()


def arguments(kind: Any, asked: argparse.Namespace, **more: Any) -> Any:
    """The reference card's arguments."""
    return kind(
        output_dir="unused", learning_rate=5e-4, per_device_train_batch_size=asked.batch,
        gradient_accumulation_steps=asked.accumulation, seed=42, lr_scheduler_type="cosine", warmup_steps=100,
        num_train_epochs=20, save_strategy="no", report_to=[], logging_steps=1, disable_tqdm=True,
        bf16=torch.cuda.is_available(), **more,
    )  # fmt: skip


def result(watch: Any) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    memory = (
        torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    seconds = watch.ended - watch.began
    return {"tokens_per_second": watch.tokens / seconds, "tokens": watch.tokens, "memory_bytes": memory}


def trainer(asked: argparse.Namespace, grouped: bool) -> dict[str, Any]:
    """Hugging Face's Trainer with dynamic padding, grouped by length or not."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    texts, watch = Texts(asked), clock(asked)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        watch.count(sum(len(row["input_ids"]) for row in rows))
        return texts.collate(rows)

    more = {"train_sampling_strategy": "group_by_length"} if grouped else {}
    model = AutoModelForCausalLM.from_pretrained(asked.model, trust_remote_code=False)
    said = arguments(TrainingArguments, asked, remove_unused_columns=False, **more)
    Trainer(model=model, args=said, train_dataset=texts, data_collator=collate, callbacks=[watch]).train()
    return result(watch)


def sft(asked: argparse.Namespace) -> dict[str, Any]:
    """TRL's SFTTrainer with packing, as its documentation has it: a packed row counts as one example, so its
    micro-batch is the number of rows that hold as many tokens."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    texts, watch = Texts(asked), clock(asked)
    mean = sum(len(row["input_ids"]) for row in texts.rows) / len(texts)
    rows = max(1, round(asked.batch * mean / asked.max_length))
    words = AutoTokenizer.from_pretrained(asked.model, trust_remote_code=False)
    words.pad_token = words.eos_token
    small = argparse.Namespace(**{**vars(asked), "batch": rows})
    said = arguments(SFTConfig, small, packing=True, max_length=asked.max_length)
    made = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(asked.model, trust_remote_code=False),
        args=said,
        train_dataset=Dataset.from_list(texts.rows),
        processing_class=words,
        callbacks=[watch],
    )
    collate = made.data_collator

    def counted(batch: list[dict[str, Any]]) -> Any:
        watch.count(sum(len(row["input_ids"]) for row in batch))
        return collate(batch)

    made.data_collator = counted
    made.train()
    return result(watch)
