"""The generator's pieces as the two endpoints put them on the wire: whole, and chunk by chunk."""

import hashlib
import secrets
import time
from typing import ClassVar

from app.catalogue import Source
from app.generator import Piece, Usage
from app.tables import JsonObject


class Chunks:
    """What one answer is made of; `id` and `created` are the same in all its parts."""

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, source: Source) -> None:
        self._id = f"{self.prefix}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = source.name
        # Another training is another source: that is what may change the answer to a seed.
        self._fingerprint = "fp_" + hashlib.sha256(source.source.encode()).hexdigest()[:10]

    def whole(self, usage: Usage | None) -> JsonObject:
        """One object, but for its choices."""
        return {**self._head(self.whole_object), "usage": usage}

    def chunk(self, choices: list[JsonObject]) -> JsonObject:
        """One part of a stream."""
        return {**self._head(self.chunk_object), "choices": choices}

    def opening(self) -> list[JsonObject]:
        """What a stream begins with, each in a chunk of its own."""
        return []

    def choice(self, piece: Piece) -> JsonObject:
        """A choice of the whole answer."""
        raise NotImplementedError

    def parts(self, piece: Piece) -> list[JsonObject]:
        """The same in a stream, each in a chunk of its own."""
        raise NotImplementedError

    def _head(self, kind: str) -> JsonObject:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
        }


class TextChunks(Chunks):
    """Of completions: a chunk is the whole with a part of the text."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def choice(self, piece: Piece) -> JsonObject:
        return {
            "text": piece["text"],
            "index": piece["choice"],
            "logprobs": piece["logprobs"],
            "finish_reason": piece["finish_reason"],
        }

    def parts(self, piece: Piece) -> list[JsonObject]:
        return [self.choice(piece)]


class ChatChunks(Chunks):
    """Of chat: the role once, then content, then an empty delta with the reason for the end."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, source: Source, n: int) -> None:
        super().__init__(source)
        self._n = n

    def opening(self) -> list[JsonObject]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [_delta(choice, delta) for choice in range(self._n)]

    def choice(self, piece: Piece) -> JsonObject:
        return {
            "index": piece["choice"],
            "message": {"role": "assistant", "content": piece["text"], "refusal": None},
            "logprobs": _logprobs(piece),
            "finish_reason": piece["finish_reason"],
        }

    def parts(self, piece: Piece) -> list[JsonObject]:
        parts = []
        if piece["text"] or piece["logprobs"]:
            parts.append(_delta(piece["choice"], {"content": piece["text"]}, _logprobs(piece)))
        if piece["finish_reason"]:
            parts.append(_delta(piece["choice"], {}, reason=piece["finish_reason"]))
        return parts


def _delta(
    choice: int, delta: JsonObject, logprobs: JsonObject | None = None, reason: str | None = None
) -> JsonObject:
    return {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _logprobs(piece: Piece) -> JsonObject | None:
    scored = piece["logprobs"]
    return None if scored is None else {"content": scored, "refusal": None}
