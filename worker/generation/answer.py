"""From a request in words to asks in token ids, and from tokens back to pieces of text."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Literal

from app.errors import InvalidRequest, ServiceError
from app.generator import Generation, Logprobs, Piece, Usage
from worker.generation.model import Model
from worker.generation.request import Ask, Ended, Event, Failed, PromptScored, Scored, Ticket, Written
from worker.generation.sampling import Sampling
from worker.generation.stop import StopMatcher
from worker.generation.vocabulary import Utf8, Vocabulary, text_of

Reason = Literal["stop", "length"]


class Transcript:
    """One choice as it is written: text is shown once no later token can change it, its tokens with it."""

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        self._utf8 = Utf8()
        self._stops = StopMatcher(stops)
        self._decoded = 0  # characters
        self._shown = 0  # characters
        self._text = ""  # shown, not yet taken
        self._tokens: deque[tuple[int, Scored]] = deque()  # with offsets, not yet taken
        self._logprob = 0.0
        self.written = 0
        self.reason: Reason | None = None

    @property
    def likelihood(self) -> float:
        """Mean log-probability of a token: what `best_of` ranks by."""
        return self._logprob / max(1, self.written)

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
        """Take the next token; whether a stop string is complete with it."""
        self.written += 1
        self._logprob += scored.logprob or 0.0
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

    def take(self, logprobs: bool) -> tuple[str, Logprobs | None]:
        """What can be shown and was not taken before."""
        text, self._text = self._text, ""
        whole = self.reason is not None and not self._stops.hit
        ready = []
        while self._tokens and (whole or self._tokens[0][0] < self._shown):
            ready.append(self._tokens.popleft())
        return text, self._named(ready) if logprobs else None

    def _show(self, text: str) -> None:
        self._text += text
        self._shown += len(text)

    def _named(self, tokens: Sequence[tuple[int, Scored]]) -> Logprobs:
        label = self._vocabulary.label
        return {
            "tokens": [label(each.token) for _, each in tokens],
            "token_logprobs": [each.logprob for _, each in tokens],
            "top_logprobs": [self._alternatives(each) for _, each in tokens],
            "text_offset": [offset for offset, _ in tokens],
        }

    def _alternatives(self, scored: Scored) -> dict[str, float] | None:
        """The best tokens, and always the one that was taken; of two with one name the likelier."""
        if scored.logprob is None:
            return None
        named: dict[str, float] = {}
        for token, logprob in [*scored.top, (scored.token, scored.logprob)]:
            named.setdefault(self._vocabulary.label(token), logprob)
        return named


class Answer:
    """All choices of one request. Raises InvalidRequest for what this model cannot do."""

    def __init__(self, request: Generation, model: Model) -> None:
        self._request = request
        self._vocabulary = model.vocabulary
        _check_ids(request.logit_bias, model, "logit_bias")
        self._prompts = [self._encode(prompt, model) for prompt in request.prompts]
        self.asks = [self._ask(prompt, model) for prompt in self._prompts]
        self._transcripts = [
            [Transcript(model.vocabulary, request.stop) for _ in range(request.best_of)] for _ in self.asks
        ]
        if request.echo and not self._scores_prompt:
            for place in range(len(self.asks)):
                self._echo(place, ())

    @property
    def done(self) -> bool:
        return all(each.reason for choices in self._transcripts for each in choices)

    @property
    def usage(self) -> Usage:
        read = sum(len(ask.prompt) for ask in self.asks)
        written = sum(each.written for choices in self._transcripts for each in choices)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def hear(self, place: int, events: Sequence[Event], ticket: Ticket) -> Iterator[Piece]:
        """Take the events of `asks[place]`; pieces, when streaming. Raises ServiceError on a failure."""
        changed: dict[int, None] = {}
        for event in events:
            match event:
                case Failed(message):
                    raise ServiceError(message, code="generation_failed")
                case PromptScored(tokens):
                    self._echo(place, tokens)
                    changed.update(dict.fromkeys(range(self._request.best_of)))
                case Written(choice, scored):
                    self._write(place, choice, scored, ticket)
                    changed[choice] = None
                case Ended(choice, reason):
                    self._end(place, choice, reason)
                    changed[choice] = None
        if self._request.stream:
            for choice in changed:
                yield from self._piece(place, choice, self._transcripts[place][choice])

    def results(self) -> Iterator[Piece]:
        """When not streaming: each choice as a whole, the likeliest `n` candidates in falling order."""
        if self._request.stream:
            return
        for place, candidates in enumerate(self._transcripts):
            kept = candidates
            if self._request.best_of > self._request.n:
                kept = sorted(candidates, key=lambda each: -each.likelihood)[: self._request.n]
            for choice, transcript in enumerate(kept):
                yield from self._piece(place, choice, transcript)

    @property
    def _scores_prompt(self) -> bool:
        return self._request.echo and self._request.logprobs is not None

    def _encode(self, prompt: str | list[int], model: Model) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(model.vocabulary.encode(prompt))
        _check_ids(prompt, model, "prompt")
        return tuple(prompt)

    def _ask(self, prompt: tuple[int, ...], model: Model) -> Ask:
        request = self._request
        prompt = prompt or (model.start,)
        return Ask(
            prompt=prompt,
            max_tokens=_fit(len(prompt), request, model),
            choices=request.best_of,
            sampling=Sampling(
                temperature=request.temperature,
                top_k=request.top_k,
                top_p=request.top_p,
                min_p=request.min_p,
                repetition_penalty=request.repetition_penalty,
                presence_penalty=request.presence_penalty,
                frequency_penalty=request.frequency_penalty,
                bias=request.logit_bias,
                seed=request.seed,
            ),
            logprobs=0 if request.logprobs is None and request.best_of > request.n else request.logprobs,
            prompt_logprobs=self._scores_prompt,
        )

    def _echo(self, place: int, tokens: Sequence[Scored]) -> None:
        prompt, encoded = self._request.prompts[place], self._prompts[place]
        shown = tokens if encoded else ()  # an empty prompt's start token is not part of it
        for transcript in self._transcripts[place]:
            if isinstance(prompt, str):
                transcript.echo_text(prompt, shown)
            else:
                transcript.echo_tokens(encoded, shown)

    def _write(self, place: int, choice: int, scored: Scored, ticket: Ticket) -> None:
        transcript = self._transcripts[place][choice]
        # A choice that has its reason: the engine had begun one more step before it heard.
        if transcript.reason is None and transcript.write(scored):
            ticket.end(choice)

    def _end(self, place: int, choice: int, reason: Reason) -> None:
        transcript = self._transcripts[place][choice]
        if transcript.reason is None:
            transcript.written += reason == "stop"  # the end token
            transcript.finish(reason)

    def _piece(self, place: int, choice: int, transcript: Transcript) -> Iterator[Piece]:
        text, logprobs = transcript.take(self._request.logprobs is not None)
        if text or transcript.reason or (logprobs and logprobs["tokens"]):
            number = place * self._request.n + choice
            yield {
                "choice": number,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": transcript.reason,
            }


def _check_ids(ids: Sequence[int] | dict[int, float], model: Model, param: str) -> None:
    wrong = next((token for token in ids if not 0 <= token < model.tokens), None)
    if wrong is not None:
        raise InvalidRequest(
            f"{param}: {wrong} is no token id of this model; they go from 0 to {model.tokens - 1}.",
            param=param,
            code="invalid_value",
        )


def _fit(length: int, request: Generation, model: Model) -> int:
    """Tokens to write. Raises InvalidRequest (context_length_exceeded) where they do not fit."""
    room = model.context - length
    wanted = request.max_tokens
    if request.fit and room > 0:
        wanted = min(wanted, room)
    if wanted > room:
        raise InvalidRequest(
            f"This model's context holds {model.context} tokens, and {length + wanted} were asked for:"
            f" {length} in the prompt and {wanted} to be written. Shorten the prompt or lower max_tokens.",
            param="prompt" if room <= 0 else "max_tokens",
            code="context_length_exceeded",
        )
    return wanted
