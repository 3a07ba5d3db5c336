"""A tiny model with a tokenizer of its own, and a trainer in this process. Nothing is downloaded."""

import json
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.recipe import Recipe
from worker.training import loop
from worker.training.events import Evaluated, Event, Finished, Notice, Prepared, Saved, Step
from worker.training.job import Job
from worker.training.pulse import Pulse

END = "<|endoftext|>"
POSITIONS = 64


def sentences(count: int, seed: int = 0) -> list[str]:
    """Uneven texts: most are short, some are over 40 tokens."""
    random_ = random.Random(seed)
    words = "the a cat dog sun moon sees eats likes red old big fish house and or under over with of"
    lengths = [random_.choice([3, 5, 8, 12, 30]) for _ in range(count)]
    return [" ".join(random_.choices(words.split(), k=length)) + "." for length in lengths]


def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(sentences(200), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, bos_token=END, eos_token=END, unk_token=END, model_max_length=POSITIONS
    )


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2 of two layers, without dropout."""
    folder, words = tmp_path_factory.mktemp("gpt2"), tokenizer()
    config = GPT2Config(
        vocab_size=len(words), n_layer=2, n_embd=32, n_head=2, n_positions=POSITIONS, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama of two layers with grouped heads and an output layer of its own."""
    folder, words = tmp_path_factory.mktemp("llama"), tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), num_hidden_layers=2, hidden_size=32, intermediate_size=64,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=POSITIONS,
        tie_word_embeddings=False, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
        pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 texts: with 8 a step, 13 steps an epoch, the last of which is short."""
    return write_rows(tmp_path_factory.mktemp("data") / "texts.jsonl", [{"text": t} for t in sentences(100)])


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"text": text} for text in sentences(20, seed=1)]
    return write_rows(tmp_path_factory.mktemp("data") / "held_out.jsonl", rows)


class Run:
    """The events of one run, by kind."""

    def __init__(self, events: list[Event], job: Job) -> None:
        self.events, self.job = events, job

    def all(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def steps(self) -> list[Step]:
        return self.all(Step)

    @property
    def losses(self) -> list[float]:
        return [float(step.loss or 0) for step in self.steps]

    @property
    def evaluations(self) -> list[Evaluated]:
        return self.all(Evaluated)

    @property
    def saved(self) -> list[Saved]:
        return self.all(Saved)

    @property
    def prepared(self) -> Prepared:
        found: Prepared = self.all(Prepared)[0]
        return found

    @property
    def finished(self) -> Finished:
        found: Finished = self.all(Finished)[0]
        return found

    def notices(self) -> list[str]:
        found: list[Notice] = self.all(Notice)
        return [notice.code for notice in found]

    @property
    def model(self) -> Path:
        return self.job.out / "model"

    def checkpoint(self, step: int) -> Path:
        return self.job.out / "checkpoints" / f"step-{step}"


Train = Callable[..., Run]
# `auto` is bf16 on a processor that is fast at it: what is compared to the digit is fp32 on every machine.
EXACT = {"mixed_precision_training": "no"}
MATHS = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "skipped")


def maths(step: Step) -> tuple[object, ...]:
    """What of a step may not depend on when it was taken."""
    return tuple(getattr(step, name) for name in MATHS)


@pytest.fixture
def job(gpt2: Path, texts: Path, tmp_path: Path) -> Job:
    return Job(Recipe(), texts, "jsonl", gpt2, tmp_path / "out", base_name="base", name="tuned")


@pytest.fixture
def train(job: Job) -> Train:
    """Trains in this process, exactly: keywords of Job by name, everything else is a hyperparameter."""

    def run(pulse: Pulse | None = None, **said: Any) -> Run:
        own = {
            name: said.pop(name)
            for name in list(said)
            if name in Job.__dataclass_fields__ and name != "recipe"
        }
        method = said.pop("method", "supervised")
        asked = replace(
            job, recipe=Recipe.from_request({"learning_rate": 1e-3, **EXACT, **said}, method), **own
        )
        events: list[Event] = []
        found = Run(events, asked)
        events.extend(loop.train(asked, pulse or Pulse()))
        return found

    return run


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    torch.set_num_threads(1)  # models this small only wait for a second one
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
