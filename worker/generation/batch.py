"""All that one model is answering: prompts being read, sequences being written, one step for all of them."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache

from worker.generation.cache import Timeline
from worker.generation.model import Model
from worker.generation.request import Ask, Ended, Failed, PromptScored, Scored, Ticket, Written
from worker.generation.sampling import Sampler, choose

# Prompt tokens read between two steps: the most that a long prompt makes the others wait.
READ_TOKENS = 256


@dataclass(frozen=True)
class Capacity:
    """How much one model answers at a time; the rest waits. One sequence is always let in."""

    rows: int = 64
    cache_bytes: int = 2 * 1024**3


class _Reading:
    """A prompt on its way into the cache; afterwards the source of its choices."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.cache = DynamicCache()
        self.done = 0
        self.scored: list[Scored] = [Scored(ticket.ask.prompt[0])]
        self.logits = torch.empty(0)
        self.choices = deque(range(ticket.ask.choices))

    @property
    def finished(self) -> bool:
        return self.done == len(self.ticket.ask.prompt)


class _Writing:
    """One choice being written, one row of the timeline."""

    def __init__(self, ticket: Ticket, choice: int) -> None:
        self.ticket = ticket
        self.choice = choice
        self.sampler = Sampler(ticket.ask.sampling, ticket.ask.prompt, choice)
        self.written = 0
        self.token = -1

    @property
    def wanted(self) -> bool:
        return self.ticket.wants(self.choice)

    def accept(self, token: int, scored: Scored, ends: frozenset[int]) -> bool:
        """Take the next token; whether more are to come."""
        self.token = token
        self.written += 1
        if token in ends:
            self.ticket.put(Ended(self.choice, "stop"))
            return False
        self.ticket.put(Written(self.choice, scored))
        if self.written == self.ticket.ask.max_tokens:
            self.ticket.put(Ended(self.choice, "length"))
            return False
        return True


class Batch:
    """One model's answers. Not thread-safe: all calls come from the engine's thread."""

    def __init__(self, model: Model, capacity: Capacity) -> None:
        self.model = model
        self.capacity = capacity
        self.waiting: deque[Ticket] = deque()
        self._reading: _Reading | None = None
        self._writing: list[_Writing] = []
        self._timeline = Timeline()

    @property
    def idle(self) -> bool:
        return not (self.waiting or self._reading or self._writing)

    def turn(self) -> None:
        """Let in who waits, as far as there is room, then write one token of every sequence."""
        self._drop(row for row, each in enumerate(self._writing) if not each.wanted)
        self._admit()
        if self._writing:
            self._step()

    def fail(self, message: str) -> None:
        """Tell everybody that it is over."""
        tickets = [*self.waiting, *(each.ticket for each in self._writing)]
        if self._reading:
            tickets.append(self._reading.ticket)
        for ticket in dict.fromkeys(tickets):
            ticket.put(Failed(message))
            ticket.flush()

    def _admit(self) -> None:
        budget = READ_TOKENS
        while budget > 0:
            if self._reading is None:
                if not self.waiting:
                    return
                self._reading = _Reading(self.waiting.popleft())
            reading = self._reading
            if not reading.ticket.cancelled:
                budget -= self._read(reading, budget)
                if not reading.finished:
                    return
                self._start_choices(reading)
                reading.ticket.flush()
            if reading.choices and not reading.ticket.cancelled:
                return
            self._reading = None

    def _read(self, reading: _Reading, budget: int) -> int:
        """Run the next piece of a prompt through the model; returns its number of tokens."""
        ask = reading.ticket.ask
        piece = ask.prompt[reading.done : reading.done + budget]
        if not piece:
            return 0
        device = self.model.device
        positions = torch.arange(reading.done, reading.done + len(piece), device=device)[None]
        logits = self.model.forward(
            torch.tensor([piece], device=device),
            positions,
            reading.cache,
            keep=0 if ask.prompt_logprobs else 1,
        )[0]
        reading.done += len(piece)
        reading.logits = logits[-1:].clone()  # not a view: it would keep the logits of all positions
        if ask.prompt_logprobs:
            following = ask.prompt[reading.done - len(piece) + 1 : reading.done + 1]
            reading.scored += _score(logits[: len(following)], following, [ask] * len(following))
            if reading.finished:
                reading.ticket.put(PromptScored(tuple(reading.scored)))
        return len(piece)

    def _start_choices(self, reading: _Reading) -> None:
        """Turn as many choices of a read prompt into rows as there is room for."""
        ask = reading.ticket.ask
        while reading.choices and (ask.max_tokens == 0 or self._has_room(ask)):
            choice = reading.choices.popleft()
            if ask.max_tokens == 0:
                reading.ticket.put(Ended(choice, "length"))
                continue
            row = _Writing(reading.ticket, choice)
            if row.wanted and self._write(reading.logits, [row])[0]:
                self._timeline.insert(reading.cache, len(ask.prompt))
                self._writing.append(row)

    def _has_room(self, ask: Ask) -> bool:
        if not self._writing:
            return True
        longest = max(
            len(each.prompt) + each.max_tokens for each in [ask, *(row.ticket.ask for row in self._writing)]
        )
        rows = len(self._writing) + 1
        needed = rows * longest * self.model.cache_bytes_per_token
        return rows <= self.capacity.rows and needed <= self.capacity.cache_bytes

    def _step(self) -> None:
        """One forward pass over the last token of every row."""
        device = self.model.device
        tokens = torch.tensor([[row.token] for row in self._writing], device=device)
        mask, positions = self._timeline.begin(device)
        logits = self.model.forward(tokens, positions, self._timeline, mask=mask)[:, -1]
        self._timeline.advance()
        alive = self._write(logits, self._writing)
        tickets = dict.fromkeys(row.ticket for row in self._writing)
        self._drop(row for row, more in enumerate(alive) if not more)
        for ticket in tickets:
            ticket.flush()

    def _write(self, logits: torch.Tensor, rows: Sequence[_Writing]) -> list[bool]:
        """Choose one token for each row from (rows, vocabulary size); whether each goes on."""
        tokens = choose(logits, [row.sampler for row in rows])
        scored = _score(logits, tokens, [row.ticket.ask for row in rows])
        ends = self.model.ends
        return [
            row.accept(token, score, ends) for row, token, score in zip(rows, tokens, scored, strict=True)
        ]

    def _drop(self, rows: Iterable[int]) -> None:
        for row in sorted(rows, reverse=True):
            self._timeline.remove(row)
            self._writing[row] = self._writing[-1]
            self._writing.pop()


def _score(logits: torch.Tensor, tokens: Sequence[int], asks: Sequence[Ask]) -> list[Scored]:
    """Log-probabilities of `tokens` under (rows, vocabulary size), for the rows whose ask wants them."""
    scored = [Scored(token) for token in tokens]
    wanted = [row for row, ask in enumerate(asks) if ask.logprobs is not None]
    if not wanted:
        return scored
    logprobs = logits[wanted].log_softmax(-1)
    chosen = logprobs.gather(-1, torch.tensor([[tokens[row]] for row in wanted], device=logits.device))
    most = max(asks[row].logprobs or 0 for row in wanted)
    best = logprobs.topk(most)
    values, ids = best.values.tolist(), best.indices.tolist()
    for place, row in enumerate(wanted):
        count = asks[row].logprobs or 0
        top = tuple(zip(ids[place][:count], values[place][:count], strict=True))
        scored[row] = Scored(tokens[row], float(chosen[place, 0]), top)
    return scored
