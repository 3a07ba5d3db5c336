"""Answers that are JSON of a given schema: which tokens may come next is llguidance's work, 20 to 50 µs each.

So that it is JSON too where `max_tokens` ends it: as soon as the tokens left are just enough to close what is
open, they are spent on that.
"""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from app.errors import InvalidRequest
from worker.generation.ending import Endings
from worker.generation.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_SCHEMA_CHARACTERS = 50_000  # of 2,000 properties took seconds to compile
# Between the parts of a document: nothing, or a line break and an indentation. Unbounded, a model that knows
# little would write blanks for ever.
OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"\n?[ ]{0,16}"}
# From so many tokens before the end on, or twice what an empty document takes, the way out is looked for at
# every step: 20 µs for each of its tokens, and of that many at most.
NEAR = 64
LONGEST_WAY = 1024
# Bytes that lead out of a document, and those that lead on, the best first; a string is left by its end only.
CLOSERS, OPENERS = b"}],", b'0123456789":'
QUOTE, ESCAPE = 0x22, 0x5C


@dataclass(frozen=True, eq=False)
class Lexicon:
    """A vocabulary as llguidance reads it, and the tokens that spell a single byte."""

    tokenizer: "LLTokenizer"
    vocabulary: Vocabulary
    ends: frozenset[int]
    bytes: dict[int, int]

    @classmethod
    def of(cls, vocabulary: Vocabulary, tokens: int, ends: frozenset[int]) -> "Lexicon":
        """For a model of `tokens` token ids; takes half a second for 50,257.

        Raises InvalidRequest for a model whose tokenizer or end token is not known.
        """
        # Imported where it is used: a generator that nobody asks for JSON works without it.
        from llguidance import LLTokenizer

        described = vocabulary.described
        if described is None or not ends:
            raise _refuse("this model's tokenizer cannot be held to a format.")
        try:
            tokenizer = LLTokenizer(described, n_vocab=tokens, eos_token=sorted(ends))
        except ValueError as error:
            raise _refuse(f"this model's tokenizer cannot be held to a format ({error}).") from error
        spelled = ((vocabulary.shown(token), token) for token in range(tokens))
        return cls(tokenizer, vocabulary, ends, {piece[0]: t for piece, t in spelled if len(piece) == 1})

    def matcher(self, schema: dict[str, Any]) -> "LLMatcher":
        """Of a schema; one that cannot be met is in error."""
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema | {"x-guidance": OPTIONS}))
        return LLMatcher(self.tokenizer, grammar, log_level=0)


@dataclass(frozen=True, eq=False)
class Grammar:
    """A compiled schema for answers of at most `budget` tokens; `shortest` is the shortest of them, or None
    where it has more than that."""

    lexicon: Lexicon
    matcher: "LLMatcher"
    budget: int
    shortest: list[int] | None
    endings: Endings

    @classmethod
    def compile(cls, schema: dict[str, Any], lexicon: Lexicon, budget: int, lead: str = "") -> "Grammar":
        """`lead` may stand before the document. Raises InvalidRequest naming what cannot be met."""
        from llguidance import LLMatcher

        text = json.dumps(schema | {"x-guidance": OPTIONS})
        if len(text) > MAX_SCHEMA_CHARACTERS:
            raise _refuse(f"the schema is longer than {MAX_SCHEMA_CHARACTERS:,} characters.")
        wrong, messages = LLMatcher.validate_grammar_with_warnings(
            LLMatcher.grammar_from_json_schema(text), lexicon.tokenizer
        )
        if wrong:
            raise _refuse(f"the schema cannot be enforced: {_in_words(messages[0])}")
        before = f"{json.dumps(lead)}? " if lead else ""
        matcher = LLMatcher(
            lexicon.tokenizer,
            LLMatcher.grammar_from_lark(f"start: {before}document\ndocument: %json {text}"),
            log_level=0,
        )
        first = matcher.deep_copy()
        first.compute_logit_bias()  # here and not in the engine: it is the step that a large schema fails at
        if first.is_error():
            raise _refuse(f"the schema cannot be enforced: {_in_words(first.get_error())}")
        endings = Endings.of(schema, lexicon.bytes, lexicon.matcher)
        shortest = _way_out(lexicon, endings, matcher.deep_copy(), _Strings(), min(budget, LONGEST_WAY))
        return cls(lexicon, matcher, budget, shortest, endings)

    def guide(self) -> "Guide":
        """For one choice."""
        return Guide(self)


class Guide:
    """One answer on its way through its grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self._lexicon = grammar.lexicon
        self._endings = grammar.endings
        self._matcher = grammar.matcher.deep_copy()
        self._left = grammar.budget
        self._string = _Strings()
        # The way out from here, once the end is near; None: there is none that is short enough.
        self._spare = grammar.shortest
        self._near = 0 if self._spare is None else max(NEAR, 2 * len(self._spare))
        self._path: deque[int] = deque()  # the way out, once it is taken
        self.cut = False
        self.trouble: str | None = None

    def allow(self, logits: torch.Tensor) -> None:
        """-inf, in one row of logits (vocabulary size), for all tokens that cannot come next."""
        if self._path or self.trouble:
            return
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        if self._matcher.is_error() or not allowed.any():
            self.trouble = _in_words(self._matcher.get_error())
            return
        forbidden = torch.ones(logits.shape[0], dtype=torch.bool)
        size = min(logits.shape[0], allowed.shape[0])
        forbidden[:size] = allowed[:size] == 0
        logits.masked_fill_(forbidden.to(logits.device), float("-inf"))

    def take(self, token: int) -> int:
        """The next token: `token`, unless there would be no room left after it to close what is open."""
        if self.trouble:
            return token
        if not self._path and token not in self._lexicon.ends:
            self._leave_in_time(token)
        if self._path:
            token = self._path.popleft()
        if token not in self._lexicon.ends:
            self._string.read(self._lexicon.vocabulary.shown(token))
        if not self._matcher.consume_token(token):
            self.trouble = _in_words(self._matcher.get_error())
        self._left -= 1
        return token

    def _leave_in_time(self, token: int) -> None:
        if self._left > self._near + 1:
            return
        if self._left == self._near + 1:  # first step
            self._spare = self._way_out((), self._left)
        after = self._way_out((token,), self._left - 1)
        if after is None and self._spare:
            self._path.extend(self._spare)
            self.cut = True
        self._spare = after

    def _way_out(self, tokens: Sequence[int], limit: int) -> list[int] | None:
        """What closes the document after `tokens`; None: nothing found that takes at most `limit`."""
        ahead, string = self._matcher.deep_copy(), self._string.copy()
        ahead.consume_tokens(list(tokens))
        for token in tokens:
            string.read(self._lexicon.vocabulary.shown(token))
        return _way_out(self._lexicon, self._endings, ahead, string, limit)


def _way_out(
    lexicon: Lexicon, endings: Endings, ahead: "LLMatcher", string: "_Strings", limit: int
) -> list[int] | None:
    """At most `limit` tokens that close the document from here; `ahead` and `string` are used up."""
    path: list[int] = []
    while not ahead.is_accepting():
        found = ahead.compute_ff_tokens() or _closing(lexicon, endings, ahead, string.within)
        if not found or len(path) + len(found) > limit or not ahead.consume_tokens(found):
            return None
        for token in found:
            string.read(lexicon.vocabulary.shown(token))
        path += found
    return path


def _closing(lexicon: Lexicon, endings: Endings, ahead: "LLMatcher", within: bool) -> list[int]:
    """Allowed tokens that lead out the soonest, as far as is known: one, or those of an ending."""
    allowed = ahead.compute_logit_bias()

    def first(closers: bytes) -> list[int]:
        tokens = (lexicon.bytes.get(byte) for byte in closers)
        return next(([token] for token in tokens if token is not None and allowed[token]), [])

    closing = first(bytes([QUOTE]) if within else CLOSERS) or endings.fitting(ahead, within)
    if closing or (not within and (closing := first(OPENERS))):
        return closing
    single = [token for token in lexicon.bytes.values() if allowed[token]]
    if single:
        return [min(single)]
    return [next(token for token, may in enumerate(allowed) if may)] if any(allowed) else []


class _Strings:
    """Whether the bytes read so far end within a string of JSON."""

    def __init__(self, within: bool = False, escaped: bool = False) -> None:
        self.within, self._escaped = within, escaped

    def copy(self) -> "_Strings":
        return _Strings(self.within, self._escaped)

    def read(self, piece: bytes) -> None:
        for byte in piece:
            if self._escaped:
                self._escaped = False
            elif self.within and byte == ESCAPE:
                self._escaped = True
            elif byte == QUOTE:
                self.within = not self.within


def _refuse(message: str) -> InvalidRequest:
    return InvalidRequest(
        f"response_format: {message}", param="response_format", code="unsupported_response_format"
    )


def _in_words(message: str) -> str:
    """llguidance's own words, without what only a programmer could do."""
    if message.startswith("oneOf"):
        return "oneOf, where two of its parts may both hold; use anyOf."
    if message.startswith("Unimplemented keys: "):
        return f"it does not know the keywords {message.removeprefix('Unimplemented keys: ')}."
    return " ".join(message.split())[:300] or "nothing can follow any more."
