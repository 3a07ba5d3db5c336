"""JSON as a training row may have it: what parsers disagree about, or what is no text, is refused."""

import json
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 64  # templates and encoders recurse; the interpreter's own limit depends on who calls


class BadJson(ValueError):
    """`message` says why, `key` where, as far as that can be told."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.message, self.key = message, key


def loads(text: str) -> Any:
    """What the text says. Raises BadJson."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadJson(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise BadJson("nested too deeply") from None
    except BadJson:
        raise
    except ValueError:  # int() refuses what would take it minutes
        raise BadJson("a number of too many digits") from None
    # Only what may be wrong is looked through: a walk costs more than the parsing.
    if "\\u" in text or text.count("[") + text.count("{") > MAX_DEPTH:
        for key, string in strings(value):
            _check(key, string)
    return value


def strings(value: Any) -> Iterator[tuple[str, str]]:
    """Every string of a parsed value, names too, and the key that leads there. Raises BadJson."""
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    while waiting:
        key, item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise BadJson("nested too deeply", key[:100])
        if isinstance(item, str):
            yield key, item
        elif isinstance(item, dict):
            for name, inner in item.items():
                yield key, name
                waiting.append((f"{key}.{name}" if key else name, inner, depth + 1))
        elif isinstance(item, list):
            waiting += [(f"{key}[{place}]", inner, depth + 1) for place, inner in enumerate(item)]


def _check(key: str, string: str) -> None:
    if "\0" in string:
        raise BadJson("a NUL character (\\u0000), which is no text", key or None)
    try:
        string.encode()
    except UnicodeEncodeError:
        raise BadJson("half of a surrogate pair, which is no character", key or None) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise BadJson(f"the key {twice[:100]!r} stands twice in one object", twice[:100])
    return found


def _refuse(word: str) -> None:
    raise BadJson(f"not JSON: {word} is no number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
