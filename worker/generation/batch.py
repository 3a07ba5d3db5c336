"""All that one model is answering: prompts being read, sequences being written, one step for all of them."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from transformers.cache_utils import DynamicCache

from worker.generation.cache import Timeline, states_of
from worker.generation.head import Outlook
from worker.generation.model import Model
from worker.generation.request import Ask, Ended, Failed, PromptScored, Scored, Ticket
from worker.generation.sampling import choose
from worker.generation.sequence import Reading, Writing

# Prompt tokens read between two steps: the most that a long prompt makes the others wait.
READ_TOKENS = 256
# Of rows and cache, what goes to requests that have a row already. The rest is for those that have none:
# behind one with 200 choices of 100 tokens, three tokens of another took 6 s to come.
SHARE = 0.75


@dataclass(frozen=True)
class Capacity:
    """How much one model answers at a time; the rest waits. One sequence is always let in."""

    rows: int = 64
    cache_bytes: int = 2 * 1024**3


class Batch:
    """One model's answers. Not thread-safe: all calls come from the engine's thread."""

    def __init__(self, model: Model, capacity: Capacity) -> None:
        self.model = model
        self.capacity = capacity
        self.waiting: deque[Ticket] = deque()
        self._reading: Reading | None = None  # a long prompt, piece by piece
        self._read: deque[Reading] = deque()  # whole prompts whose choices begin as there is room
        self._full = False  # somebody without a row finds no room: nobody is to come before
        self._writing: list[Writing] = []
        self._timeline = Timeline()

    @property
    def idle(self) -> bool:
        return not (self.waiting or self._reading or self._read or self._writing)

    def turn(self) -> None:
        """Let in who waits, as far as there is room, then write one token of every sequence."""
        self._drop(row for row, each in enumerate(self._writing) if not each.wanted)
        beside = self._admit()
        if self._writing or beside:
            self._step(beside)

    def fail(self, message: str) -> None:
        """Tell everybody that it is over."""
        tickets = [*self.waiting, *(each.ticket for each in self._read)]
        tickets += [each.ticket for each in self._writing]
        if self._reading:
            tickets.append(self._reading.ticket)
        for ticket in dict.fromkeys(tickets):
            ticket.put(Failed(message))
            ticket.flush()

    def _admit(self) -> list[Reading]:
        """Read prompts and begin their choices; the prompts that the step itself is to read."""
        budget = READ_TOKENS
        self._start_choices()
        while budget > 0 and not self._full and (self._reading or self.waiting):
            if self._reading is None:
                together = self._take_waiting(budget)
                if together and self._reads_along(together):
                    return together
                if together:
                    budget -= self._read_together(together)
                elif budget == READ_TOKENS and (place := self._next(self._rows(), [])) is not None:
                    self._reading = Reading(self.waiting[place])
                    del self.waiting[place]
                else:
                    break  # nobody has room now, or the next prompt is for the next turn
            if self._reading is not None:
                budget -= self._read_on(self._reading, budget)
                if self._reading.finished or self._reading.ticket.cancelled:
                    self._read.append(self._reading)
                    self._reading = None
            self._start_choices()
        return []

    def _rows(self) -> Counter[object]:
        """How many rows each request has."""
        return Counter(row.ticket.request for row in self._writing)

    def _next(self, rows: Counter[object], taken: Sequence[Ask]) -> int | None:
        """Where in the line is who is read next: of a request that has no row, or else the first, as far as
        there is room beside those `taken`; None where nobody is."""
        for place, ticket in enumerate(self.waiting):
            if not rows[ticket.request]:
                return place
        return 0 if self.waiting and self._has_room(self.waiting[0].ask, taken, first=False) else None

    def _reads_along(self, readings: Sequence[Reading]) -> bool:
        """Whether the step can read them: beside its own rows their tokens cost next to nothing."""
        tickets = [*(row.ticket for row in self._writing), *(each.ticket for each in readings)]
        return self.model.reads_along([ticket.ask.adapter for ticket in tickets])

    def _take_waiting(self, budget: int) -> list[Reading]:
        """The next prompts that can be read in one pass of `budget` tokens and have rows to go to: all of one
        adapter, or of none."""
        taken: list[Reading] = []
        asks: list[Ask] = []
        rows = self._rows()
        free = max(1, self.capacity.rows - len(self._writing))
        while (place := self._next(rows, asks)) is not None:
            ticket = self.waiting[place]
            ask = ticket.ask
            if ticket.cancelled:
                del self.waiting[place]
                continue
            budget -= len(ask.prompt)
            free -= ask.choices
            alone = free < 0 or not self.model.packs or ask.adapter is not (asks or [ask])[0].adapter
            if budget < 0 or ask.prompt_logprobs or (taken and alone):
                break
            del self.waiting[place]
            taken.append(Reading(ticket))
            asks += [ask] * ask.choices
            rows[ticket.request] += ask.choices
        return taken

    def _read_together(self, readings: Sequence[Reading]) -> int:
        """Run whole prompts through the model, one behind the other; returns their number of tokens."""
        self._read.extend(readings)  # now: should it fail, they are told
        device = self.model.device
        lengths = [len(each.ticket.ask.prompt) for each in readings]
        ends = list(accumulate(lengths))
        tokens = [token for each in readings for token in each.ticket.ask.prompt]
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        owners = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(device)
        mask = (owners[:, None] == owners) & (positions[:, None] >= positions)
        cache = DynamicCache()
        logits = self.model.forward(
            torch.tensor([tokens], device=device),
            positions[None],
            cache,
            mask=mask[None, None] if len(readings) > 1 else None,
            keep=torch.tensor(ends, device=device) - 1,
            adapters=[readings[0].ticket.ask.adapter],
        )[0]
        states = states_of(cache)
        for row, (reading, length, end) in enumerate(zip(readings, lengths, ends, strict=True)):
            own = slice(end - length, end)
            reading.states = [(keys[:, :, own], values[:, :, own]) for keys, values in states]
            reading.outlook = Outlook(logits[row : row + 1])
            reading.done = length
        return len(tokens)

    def _read_on(self, reading: Reading, budget: int) -> int:
        """Run the next piece of a prompt through the model; returns its number of tokens."""
        ask = reading.ticket.ask
        if reading.ticket.cancelled:
            return 0
        piece = ask.prompt[reading.done : reading.done + budget]
        device = self.model.device
        positions = torch.arange(reading.done, reading.done + len(piece), device=device)[None]
        logits = self.model.forward(
            torch.tensor([piece], device=device),
            positions,
            reading.cache,
            keep=0 if ask.prompt_logprobs else 1,
            adapters=[ask.adapter],
        )[0]
        reading.done += len(piece)
        reading.states = states_of(reading.cache)
        # Not a view: it would keep the logits of all positions.
        reading.outlook = Outlook(logits[-1:].clone())
        if ask.prompt_logprobs:
            following = ask.prompt[reading.done - len(piece) + 1 : reading.done + 1]
            scores = _score(Outlook(logits[: len(following)]), following, [ask] * len(following))
            reading.scored += scores
            if reading.finished:
                reading.ticket.put(PromptScored(tuple(reading.scored)))
        return len(piece)

    def _start_choices(self) -> None:
        """Turn as many choices of the prompts that were read into rows as there is room for, those of
        requests without a row first."""
        self._full = False
        if not self._read:
            return
        begun: list[tuple[Reading, Writing]] = []
        tickets: dict[Ticket, None] = {}
        rows = self._rows()
        for reading in sorted(self._read, key=lambda each: rows[each.ticket.request] > 0):
            tickets[reading.ticket] = None
            self._begin(reading, begun, rows)
            if self._full:
                break
        if begun:
            outlook = Outlook.joined([reading.outlook for reading, _ in begun])
            alive = self._write(outlook, [row for _, row in begun])
            for (reading, row), more in zip(begun, alive, strict=True):
                if more:
                    self._timeline.insert(reading.states, len(row.ticket.ask.prompt))
                    self._writing.append(row)
        # Not before: whoever is in no list is told of no failure.
        self._read = deque(each for each in self._read if each.choices and not each.ticket.cancelled)
        for ticket in tickets:
            ticket.flush()

    def _begin(self, reading: Reading, begun: list[tuple[Reading, Writing]], rows: Counter[object]) -> None:
        """Append rows for the choices of one prompt, as many as it can have now."""
        ask, request = reading.ticket.ask, reading.ticket.request
        while reading.choices and not reading.ticket.cancelled:
            first = not rows[request]
            if ask.max_tokens and not self._has_room(ask, [row.ticket.ask for _, row in begun], first):
                self._full = first  # nobody goes before who has no row at all
                return
            if not first and any(not rows[ticket.request] for ticket in self.waiting):
                return
            choice = reading.choices.popleft()
            if not ask.max_tokens:
                reading.ticket.put(Ended(choice, "length"))
            elif reading.ticket.wants(choice):
                begun.append((reading, Writing(reading.ticket, choice)))
                rows[request] += 1

    def _has_room(self, ask: Ask, more: Sequence[Ask], first: bool) -> bool:
        """For one more row, beside those there are and `more`; `first`: of its request."""
        others = [*(row.ticket.ask for row in self._writing), *more]
        if not others:
            return True
        share = 1.0 if first else SHARE
        longest = max(len(each.prompt) + each.max_tokens for each in [ask, *others])
        rows = len(others) + 1
        needed = rows * longest * self.model.cache_bytes_per_token
        return rows <= share * self.capacity.rows and needed <= share * self.capacity.cache_bytes

    def _step(self, beside: Sequence[Reading]) -> None:
        """One forward pass over the last token of every row, and over the prompts read beside."""
        self._read.extend(beside)  # now: should it fail, they are told
        device = self.model.device
        rows = len(self._writing)
        tokens = torch.tensor([row.token for row in self._writing], dtype=torch.long, device=device)
        adapters = [row.ticket.ask.adapter for row in self._writing]
        prompts = [torch.tensor(each.ticket.ask.prompt, device=device) for each in beside]
        outlook, states = self.model.step(tokens, self._timeline, adapters, prompts)
        if all(row.plain for row in self._writing) and all(each.plain for each in beside):
            # Of all in one pass over the head, not first of the rows and then of the prompts.
            _ = outlook.likeliest
        for place, (reading, own) in enumerate(zip(beside, states, strict=True), rows):
            reading.states, reading.outlook = own, outlook.of([place])
            reading.done = len(reading.ticket.ask.prompt)
        alive = self._write(outlook.of(range(rows)), self._writing)
        tickets = dict.fromkeys(row.ticket for row in self._writing)
        self._drop(row for row, more in enumerate(alive) if not more)
        for ticket in tickets:
            ticket.flush()
        self._start_choices()

    def _write(self, outlook: Outlook, rows: Sequence[Writing]) -> list[bool]:
        """Choose one token for each row; whether each goes on."""
        alive = [False] * len(rows)
        for plain in (True, False):  # who wants the likeliest token alone needs no logits
            places = [place for place, row in enumerate(rows) if row.plain is plain]
            if not places:
                continue
            own, theirs = outlook.of(places), [rows[place] for place in places]
            tokens = own.likeliest if plain else choose(own.logits, [row.sampler for row in theirs])
            scored = _score(own, tokens, [row.ticket.ask for row in theirs])
            for place, row, token, score in zip(places, theirs, tokens, scored, strict=True):
                alive[place] = row.accept(token, score, self.model.ends)
        return alive

    def _drop(self, rows: Iterable[int]) -> None:
        for row in sorted(rows, reverse=True):
            for old, new in self._timeline.remove(row):
                self._writing[new] = self._writing[old]
            self._writing.pop()


def _score(outlook: Outlook, tokens: Sequence[int], asks: Sequence[Ask]) -> list[Scored]:
    """Log-probabilities of `tokens`, one a row, for the rows whose ask wants them."""
    scored = [Scored(token) for token in tokens]
    wanted = [row for row, ask in enumerate(asks) if ask.logprobs is not None]
    if not wanted:
        return scored
    logprobs = outlook.logits[wanted].log_softmax(-1)
    chosen = logprobs.gather(-1, torch.tensor([[tokens[row]] for row in wanted], device=logprobs.device))
    most = max(asks[row].logprobs or 0 for row in wanted)
    best = logprobs.topk(most)
    values, ids = best.values.tolist(), best.indices.tolist()
    for place, row in enumerate(wanted):
        count = asks[row].logprobs or 0
        top = tuple(zip(ids[place][:count], values[place][:count], strict=True))
        scored[row] = Scored(tokens[row], float(chosen[place, 0]), top)
    return scored
