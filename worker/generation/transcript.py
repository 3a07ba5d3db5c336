"""One choice as text: what can be shown of it, and which of its tokens lie within that."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from worker.generation.request import Scored
from worker.generation.stop import StopMatcher
from worker.generation.vocabulary import Utf8, Vocabulary, text_of

Reason = Literal["stop", "length"]
# Where in the choice's text (in characters) a token begins, and the token.
Placed: TypeAlias = tuple[int, Scored]


@dataclass(frozen=True)
class Bounds:
    """`stops` and the tokens `ends` end a choice and are not shown; of `lead` at its beginning, neither is
    as much as is there."""

    stops: Sequence[str] = ()
    ends: frozenset[int] = frozenset()
    lead: str = ""


class Transcript:
    """One choice as it is written: text is shown once no later token can change it, its tokens with it."""

    def __init__(self, vocabulary: Vocabulary, bounds: Bounds) -> None:
        self._vocabulary = vocabulary
        self._utf8 = Utf8()
        self._stops = StopMatcher(bounds.stops)
        self._ends = bounds.ends
        self._lead = bounds.lead
        self._decoded = 0  # characters
        self._shown = 0  # characters
        self._text = ""  # shown, not yet taken
        self._tokens: deque[Placed] = deque()  # not yet taken
        self._logprob = 0.0
        self._scored = 0  # tokens
        self.written = 0
        self.reason: Reason | None = None

    @property
    def likelihood(self) -> float:
        """Mean log-probability of a token, what `best_of` ranks by. An end token has none here: counted as
        one that is certain, it would have whatever ends at once win."""
        return self._logprob / self._scored if self._scored else float("-inf")

    def echo_text(self, text: str, tokens: Sequence[Scored]) -> None:
        """Begin with a prompt given as text, whose tokens, where asked for, lie within it."""
        spell = self._vocabulary.piece
        if text_of([spell(each.token) for each in tokens]) != text:
            spell = self._vocabulary.shown  # the tokenizer put marks before the text that are not part of it
        utf8, offset = Utf8(), 0
        for each in tokens:
            self._tokens.append((min(offset, len(text)), each))
            offset += len(utf8.feed(spell(each.token)))
        self._decoded = len(text)
        self._show(text)

    def echo_tokens(self, prompt: Sequence[int], tokens: Sequence[Scored]) -> None:
        """Begin with a prompt given as tokens; its last character may be finished by the answer's first."""
        scored = dict(enumerate(tokens))
        for place, token in enumerate(prompt):
            if place in scored:
                self._tokens.append((self._decoded, scored[place]))
            text = self._utf8.feed(self._vocabulary.piece(token))
            self._decoded += len(text)
            self._show(text)

    def write(self, scored: Scored) -> bool:
        """Take the next token; whether the choice ends with it."""
        self.written += 1
        self._logprob += scored.logprob or 0.0
        self._scored += 1
        if scored.token in self._ends:
            self.finish("stop")
            return True
        self._tokens.append((self._decoded, scored))
        text = self._utf8.feed(self._vocabulary.shown(scored.token))
        self._decoded += len(text)
        self._show(self._stops.feed(text))
        if self._stops.hit:
            self.reason = "stop"
        return self._stops.hit

    def finish(self, reason: Reason) -> None:
        """No more tokens; what was held back is shown unless a stop string completes with it."""
        self._show(self._stops.feed(self._utf8.end()))
        self._show(self._stops.flush())
        self.reason = "stop" if self._stops.hit else reason

    def take(self) -> tuple[str, list[Placed]]:
        """What can be shown and was not taken before."""
        text, self._text = self._text, ""
        whole = self.reason is not None and not self._stops.hit
        ready = []
        while self._tokens and (whole or self._tokens[0][0] < self._shown):
            ready.append(self._tokens.popleft())
        return text, ready

    def _show(self, text: str) -> None:
        self._shown += len(text)
        while text and self._lead:
            same = text[0] == self._lead[0]
            text, self._lead = (text[1:], self._lead[1:]) if same else (text, "")
        self._text += text
