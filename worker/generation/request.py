"""What goes into the engine and what comes out of it: a closed list of frozen dataclasses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from worker.generation.adapter import Adapter
from worker.generation.sampling import Sampling


@dataclass(frozen=True)
class Ask:
    """Continue `prompt` (at least one token id) `choices` times by at most `max_tokens` tokens.

    `logprobs`: how many alternatives to name for each token, None for no log-probabilities at all.
    `prompt_logprobs`: the same for the prompt's own tokens. Prompt and `max_tokens` fit the model's context.
    `adapter`: the update of the shared weights that answers.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    choices: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: int | None = None
    prompt_logprobs: bool = False
    adapter: Adapter | None = None

    @property
    def plain(self) -> bool:
        """Whether it takes the likeliest token and wants to know no more of it."""
        return self.sampling.greedy and not self.sampling.adjusts and self.logprobs is None


@dataclass(frozen=True)
class Scored:
    """A token with its natural log-probability under the model itself (before penalties, bias and
    temperature) and the best tokens of its place. `logprob` is None where it was not asked for, and for the
    first token of a prompt, which nothing precedes."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class PromptScored:
    """The prompt's own tokens; comes first, where it was asked for."""

    tokens: tuple[Scored, ...]


@dataclass(frozen=True)
class Written:
    """One more token of one choice."""

    choice: int
    scored: Scored


@dataclass(frozen=True)
class Ended:
    """The last word on a choice: "stop" after the model's end token (which is not Written), else "length"."""

    choice: int
    reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Failed:
    """The last word on the whole ask."""

    message: str


Event: TypeAlias = PromptScored | Written | Ended | Failed
Sink: TypeAlias = Callable[[Sequence[Event]], None]


class Ticket:
    """An ask on its way. The caller's thread sets the two marks, the engine's reads them between steps.

    `request`: what it came in with others in; rows go to those first that have none.
    """

    def __init__(self, ask: Ask, sink: Sink, request: object = None) -> None:
        self.ask = ask
        self.request: object = request or self
        self.cancelled = False
        self._ended: set[int] = set()
        self._sink = sink
        self._events: list[Event] = []

    def cancel(self) -> None:
        """Nobody waits for this any more."""
        self.cancelled = True

    def end(self, choice: int) -> None:
        """This choice needs no more tokens: its text holds a stop string."""
        self._ended.add(choice)

    def wants(self, choice: int) -> bool:
        return not self.cancelled and choice not in self._ended

    def put(self, event: Event) -> None:
        self._events.append(event)

    def flush(self) -> None:
        """Hand over what was put since the last time: one call a step, not one a token."""
        events, self._events = self._events, []
        if events and not self.cancelled:
            self._sink(events)
