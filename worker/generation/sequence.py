"""What the engine keeps of one answer on its way: a prompt being read, a choice being written."""

from collections import deque

import torch
from transformers.cache_utils import DynamicCache

from worker.generation.cache import States
from worker.generation.head import Outlook
from worker.generation.request import Ended, Failed, Scored, Ticket, Written
from worker.generation.sampling import Sampler


class Reading:
    """A prompt on its way into the cache; afterwards the source of its choices."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.cache = DynamicCache()
        self.done = 0
        self.scored: list[Scored] = [Scored(ticket.ask.prompt[0])]
        self.states: States = []
        self.outlook = Outlook(torch.empty(0))  # one row, for the first token to be written
        self.choices = deque(range(ticket.ask.choices))

    @property
    def finished(self) -> bool:
        return self.done == len(self.ticket.ask.prompt)

    @property
    def plain(self) -> bool:
        return self.ticket.ask.plain


class Writing:
    """One choice being written, one row of the timeline."""

    def __init__(self, ticket: Ticket, choice: int) -> None:
        self.ticket = ticket
        self.choice = choice
        self.plain = ticket.ask.plain  # once: with 64 rows asking anew takes 0.1 ms of each step
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
        guide = self.sampler.guide
        if guide and guide.trouble:
            self.ticket.put(Failed(f"The format of this answer cannot be kept up: {guide.trouble}"))
            return False
        if token in ends:
            self.ticket.put(Ended(self.choice, "length" if guide and guide.cut else "stop"))
            return False
        self.ticket.put(Written(self.choice, scored))
        if self.written == self.ticket.ask.max_tokens:
            self.ticket.put(Ended(self.choice, "length"))
            return False
        return True
