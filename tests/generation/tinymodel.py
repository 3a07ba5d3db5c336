"""A GPT-2 of two layers and a byte-level vocabulary, built on the spot, and ears for what the engine says."""

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from worker.generation.engine import Stepper
from worker.generation.model import Model
from worker.generation.request import Ask, Ended, Event, Failed, PromptScored, Scored, Ticket, Written

END = "<|endoftext|>"
CONTEXT = 128
CORPUS = [
    "Bring the stock to the boil, add the rice and stir until it is done.",
    "Crème brûlée, smørrebrød, pão de queijo, 寿司 and a pie \N{PIE} for two \N{SMILING FACE WITH SUNGLASSES}"
    " are on the menu.",
    "Serve with bread and butter; the bread is best when it is still warm.",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """All 256 bytes, about a hundred merges, and the end token (id 0)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    make: Any = PreTrainedTokenizerFast  # without types
    made: PreTrainedTokenizerFast = make(tokenizer_object=tokenizer, eos_token=END)
    return made


def make_model(folder: Path, seed: int = 1) -> Path:
    """Weights wide enough apart that texts vary, far from any tie that rounding could turn."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.25,
        eos_token_id=0,
        bos_token_id=0,
    )
    weights = GPT2LMHeadModel(config)
    with torch.no_grad():
        weights.transformer.wte.weight[0] *= 2  # so that some texts end
    weights.save_pretrained(folder)
    return folder


@dataclass
class Told:
    """All that the engine said about one ask."""

    prompt: tuple[Scored, ...] = ()
    choices: dict[int, list[Scored]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    failure: str | None = None

    def tokens(self, choice: int = 0) -> list[int]:
        return [each.token for each in self.choices.get(choice, [])]

    def hear(self, event: Event) -> None:
        match event:
            case PromptScored(tokens):
                self.prompt = tokens
            case Written(choice, scored):
                self.choices.setdefault(choice, []).append(scored)
            case Ended(choice, reason):
                self.reasons[choice] = reason
            case Failed(message):
                self.failure = message


class Listener:
    """Receives the events of several asks, in the order in which the engine's thread sends them."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self.asks = asks
        self.told = [Told() for _ in asks]
        self.tickets: list[Ticket] = []
        self._heard: queue.Queue[tuple[int, Sequence[Event]]] = queue.Queue()

    def sink(self, place: int) -> Any:
        return lambda events: self._heard.put((place, events))

    def hear(self) -> None:
        place, events = self._heard.get(timeout=30)
        for event in events:
            self.told[place].hear(event)

    def hear_all(self) -> list[Told]:
        while any(
            told.failure is None and len(told.reasons) < ask.choices
            for ask, told in zip(self.asks, self.told, strict=True)
        ):
            self.hear()
        return self.told


def start(engine: Stepper, model: Model, asks: Sequence[Ask]) -> Listener:
    listener = Listener(asks)
    listener.tickets = engine.submit(model, asks, listener.sink)
    return listener


def answers(engine: Stepper, model: Model, *asks: Ask) -> list[Told]:
    return start(engine, model, asks).hear_all()
