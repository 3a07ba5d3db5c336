"""Scored tokens as the two endpoints name them."""

from collections.abc import Sequence

from app.generator import Logprobs, TokenLogprob, TopLogprob
from worker.generation.request import Scored
from worker.generation.transcript import Placed
from worker.generation.vocabulary import Vocabulary


def in_lists(tokens: Sequence[Placed], vocabulary: Vocabulary) -> Logprobs:
    """Of completions: four lists of equal length."""
    return {
        "tokens": [vocabulary.label(each.token) for _, each in tokens],
        "token_logprobs": [each.logprob for _, each in tokens],
        "top_logprobs": [_by_label(each, vocabulary) for _, each in tokens],
        "text_offset": [offset for offset, _ in tokens],
    }


def one_by_one(tokens: Sequence[Placed], vocabulary: Vocabulary) -> list[TokenLogprob]:
    """Of chat: an object a token, with its bytes."""
    return [
        {
            **_named(each.token, each.logprob or 0.0, vocabulary),
            "top_logprobs": [_named(token, logprob, vocabulary) for token, logprob in each.top],
        }
        for _, each in tokens
    ]


def _named(token: int, logprob: float, vocabulary: Vocabulary) -> TopLogprob:
    return {
        "token": vocabulary.label(token),
        "logprob": logprob,
        "bytes": list(vocabulary.piece(token)),
    }


def _by_label(scored: Scored, vocabulary: Vocabulary) -> dict[str, float] | None:
    """The best tokens, and always the one that was taken; of two with one name the likelier."""
    if scored.logprob is None:
        return None
    named: dict[str, float] = {}
    for token, logprob in [*scored.top, (scored.token, scored.logprob)]:
        named.setdefault(vocabulary.label(token), logprob)
    return named
