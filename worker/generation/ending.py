"""What ends the strings and numbers of a schema that would else go on for ever: `0@0.0` of the pattern
`[^@]+@[^@]+\\.[^@]+`, `1` of a number above 0. To who does not know what is missing, any character that may
follow is as good as another.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Beginnings that are looked at for one part of a schema, 30 µs each, and for all of them: 0.1 s at most.
TRIES, ALL_TRIES = 1000, 4000
ALL_PARTS = 64  # 1 ms each
# What they are made of, beside what the part's own pattern names.
LETTERS = "0a "
OFTEN = "@.:/-_#,;=&%~!'<>"  # what patterns name that is no letter, digit, or sign of theirs
OF_FORMATS = {"email": "@.", "uri": ":", "duration": "PD"}
DIGITS = "0125-.3467"
BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
QUOTE = b'"'
CLOSERS = b"}],"


@dataclass(frozen=True, eq=False)
class Endings:
    """Tokens that make an end possible, of each part that was found to have some; `quotes` and `closers` are
    the tokens that may then end a string, and a number."""

    strings: Sequence[list[int]]
    numbers: Sequence[list[int]]
    quotes: Sequence[int]
    closers: Sequence[int]

    @classmethod
    def of(
        cls, schema: Any, spelled: Mapping[int, int], matcher_of: Callable[[dict[str, Any]], "LLMatcher"]
    ) -> "Endings":
        """`spelled` are the tokens of single bytes."""
        quotes, closers = _spell(QUOTE, spelled), _spell(CLOSERS, spelled)
        strings: list[list[int]] = []
        numbers: list[list[int]] = []
        parts = {json.dumps(part): (part, letters) for part, letters in _parts(schema)}
        left = iter(range(ALL_TRIES))
        for part, letters in list(parts.values())[:ALL_PARTS]:
            matcher = matcher_of({"type": "array", "items": part, "minItems": 1})
            text = part["type"] == "string"
            if matcher.is_error() or not matcher.consume_tokens(_spell(b'["' if text else b"[", spelled)):
                continue
            known, ends = (strings, quotes) if text else (numbers, closers)
            ending = _shortest(matcher, _spell(letters.encode(), spelled), ends, left)
            if ending:
                known.append(ending)
        return cls(strings, numbers, quotes, closers)

    def fitting(self, ahead: "LLMatcher", within: bool) -> list[int]:
        """The fewest tokens that make an end possible here: what has been written may stand for the beginning
        of an ending. None where nothing is known that does."""
        known, ends = (self.strings, self.quotes) if within else (self.numbers, self.closers)
        rests = sorted((each[at:] for each in known for at in range(len(each))), key=len)
        return next((rest for rest in rests if _may_end(ahead, rest, ends)), [])


def _parts(schema: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Strings and numbers that may not end anywhere, with the characters to try."""
    if isinstance(schema, list):
        for item in schema:
            yield from _parts(item)
    if not isinstance(schema, dict):
        return
    pattern, form = schema.get("pattern"), str(schema.get("format"))
    if isinstance(pattern, str):
        own = "".join(each for each in pattern if each.isalnum() or each in OFTEN)
        yield {"type": "string", "pattern": pattern}, _once(LETTERS + _once(own)[:6])
    elif form in OF_FORMATS:
        yield {"type": "string", "format": form}, _once(LETTERS + OF_FORMATS[form])
    bounds = {key: value for key, value in schema.items() if key in BOUNDS and isinstance(value, int | float)}
    if bounds:
        kind = "integer" if schema.get("type") == "integer" else "number"
        yield {"type": kind, **bounds}, DIGITS
    for value in schema.values():
        yield from _parts(value)


def _once(letters: str) -> str:
    return "".join(dict.fromkeys(letters))


def _shortest(
    matcher: "LLMatcher", letters: Sequence[int], ends: Sequence[int], left: Iterator[int]
) -> list[int]:
    """The shortest text of these letters after which an end may come; empty where none was found, and where
    none is needed. Uses up what is `left` of all tries."""
    paths: deque[list[int]] = deque([[]] if not _may_end(matcher, [], ends) else [])
    for _ in islice(left, TRIES):
        if not paths:
            break
        path = paths.popleft()
        for longer in ([*path, letter] for letter in letters):
            if matcher.validate_tokens(longer) == len(longer):
                if _may_end(matcher, longer, ends):
                    return longer
                paths.append(longer)
    return []


def _may_end(matcher: "LLMatcher", tokens: Sequence[int], ends: Sequence[int]) -> bool:
    return any(matcher.validate_tokens([*tokens, end]) > len(tokens) for end in ends)


def _spell(text: bytes, spelled: Mapping[int, int]) -> list[int]:
    return [spelled[byte] for byte in text if byte in spelled]
