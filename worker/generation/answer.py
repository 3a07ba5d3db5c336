"""From a request in words to asks in token ids, and from tokens back to pieces of text."""

from collections.abc import Iterator, Sequence

from app.encoding import EncodingError
from app.errors import InvalidRequest, ServiceError
from app.generator import Generation, Piece, Usage
from worker.generation.grammar import Grammar
from worker.generation.logprobs import in_lists, one_by_one
from worker.generation.model import Model
from worker.generation.request import Ask, Ended, Event, Failed, PromptScored, Scored, Ticket, Written
from worker.generation.sampling import Sampling
from worker.generation.transcript import Bounds, Reason, Transcript


class Answer:
    """All choices of one request. Raises InvalidRequest for what this model cannot do."""

    def __init__(self, request: Generation, model: Model) -> None:
        self._request = request
        self._vocabulary = model.vocabulary
        _check_ids(request.logit_bias, model, "logit_bias")
        bounds = Bounds(request.stop)
        if request.messages is None:
            self._prompts = [self._encode(prompt, model) for prompt in request.prompts]
        else:
            prompt, bounds = _converse(request, model)
            self._prompts = [prompt]
        self.asks = [self._ask(place, model, bounds.lead) for place in range(len(self._prompts))]
        self._transcripts = [
            [Transcript(model.vocabulary, bounds) for _ in range(request.best_of)] for _ in self.asks
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
                case Written(choice, scored):
                    if self._write(place, choice, scored, ticket):
                        changed[choice] = None
                case Failed(message):
                    raise ServiceError(message, code="generation_failed")
                case PromptScored(tokens):
                    self._echo(place, tokens)
                    changed.update(dict.fromkeys(range(self._request.best_of)))
                case Ended(choice, reason):
                    if self._end(place, choice, reason):
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
            _check_length(len(prompt), model, "prompt")
            return tuple(model.vocabulary.encode(prompt))
        _check_ids(prompt, model, "prompt")
        return tuple(prompt)

    def _ask(self, place: int, model: Model, lead: str) -> Ask:
        request = self._request
        prompt = self._prompts[place] or (model.start,)
        max_tokens = _fit(len(prompt), request, model, place)
        grammar = None
        if request.json_schema is not None:
            grammar = Grammar.compile(request.json_schema, model.lexicon, max_tokens, lead)
        return Ask(
            prompt=prompt,
            max_tokens=max_tokens,
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
                grammar=grammar,
            ),
            logprobs=0 if request.logprobs is None and request.best_of > request.n else request.logprobs,
            prompt_logprobs=self._scores_prompt,
            adapter=model.adapter,
        )

    def _echo(self, place: int, tokens: Sequence[Scored]) -> None:
        prompt, encoded = self._request.prompts[place], self._prompts[place]
        shown = tokens if encoded else ()  # an empty prompt's start token is not part of it
        for transcript in self._transcripts[place]:
            if isinstance(prompt, str):
                transcript.echo_text(prompt, shown)
            else:
                transcript.echo_tokens(encoded, shown)

    def _write(self, place: int, choice: int, scored: Scored, ticket: Ticket) -> bool:
        """False for a choice that has its reason: the engine had begun one more step before it heard."""
        transcript = self._transcripts[place][choice]
        if transcript.reason is not None:
            return False
        if transcript.write(scored):
            ticket.end(choice)
        return True

    def _end(self, place: int, choice: int, reason: Reason) -> bool:
        transcript = self._transcripts[place][choice]
        if transcript.reason is not None:
            return False
        transcript.written += reason == "stop"  # the end token
        transcript.finish(reason)
        return True

    def _piece(self, place: int, choice: int, transcript: Transcript) -> Iterator[Piece]:
        text, tokens = transcript.take()
        scored = self._request.logprobs is not None
        if text or transcript.reason or (scored and tokens):
            name = in_lists if self._request.messages is None else one_by_one
            yield {
                "choice": place * self._request.n + choice,
                "text": text,
                "logprobs": name(tokens, self._vocabulary) if scored else None,
                "finish_reason": transcript.reason,
            }


def _converse(request: Generation, model: Model) -> tuple[tuple[int, ...], Bounds]:
    """The conversation so far as the model was trained to read one, and how its own turn ends."""
    if isinstance(model.encoder, EncodingError):
        raise _cannot_chat(model.encoder)
    said = request.messages or []
    _check_length(sum(len(str(each.get("content") or "")) for each in said), model, "messages")
    try:
        prompt = model.encoder.conversation(said)
    except EncodingError as error:
        raise _cannot_chat(error) from error
    turn = model.encoder.turn
    return tuple(prompt), Bounds([*request.stop, *turn.stops], turn.ends - model.ends, turn.lead)


def _cannot_chat(error: EncodingError) -> InvalidRequest:
    return InvalidRequest(f"messages: {error.message}.", param="messages", code="invalid_value")


def _check_ids(ids: Sequence[int] | dict[int, float], model: Model, param: str) -> None:
    wrong = next((token for token in ids if not 0 <= token < model.tokens), None)
    if wrong is not None:
        raise InvalidRequest(
            f"{param}: {wrong} is no token id of this model; they go from 0 to {model.tokens - 1}.",
            param=param,
            code="invalid_value",
        )


def _check_length(characters: int, model: Model, source: str) -> None:
    """Before it is encoded: 4 MB took 7 s, in which nobody else was answered. Raises InvalidRequest."""
    if characters > model.context * model.vocabulary.longest:
        raise InvalidRequest(
            f"This model's context holds {model.context} tokens, and {characters} characters of the {source}"
            f" are more than that. Shorten the {source}.",
            param=source,
            code="context_length_exceeded",
        )


def _fit(length: int, request: Generation, model: Model, place: int) -> int:
    """Tokens to write. Raises InvalidRequest (context_length_exceeded) where they do not fit."""
    room = model.context - length
    # One token at least is wanted of whoever leaves the number open.
    wanted = min(request.max_tokens, max(room, 1)) if request.fit else request.max_tokens
    source, limit = (
        ("prompt", "max_tokens") if request.messages is None else ("messages", "max_completion_tokens")
    )
    if wanted > room:
        # Of hundreds of prompts it is one.
        named = f"prompt[{place}]" if len(request.prompts) > 1 else f"the {source}"
        advice = f"Shorten {named} or lower {limit}." if room > 0 else f"Shorten {named}."
        raise InvalidRequest(
            f"This model's context holds {model.context} tokens, and {length + wanted} were asked for:"
            f" {length} in {named} and {wanted} to be written. {advice}",
            param=source if room <= 0 else limit,
            code="context_length_exceeded",
        )
    return wanted
