"""Text to token ids and token ids to bytes.

Bytes, not text: a token of a byte-level vocabulary may be a part of a character, and only bytes can be put
together without looking back. `codecs` then gives out whole characters alone.
"""

import codecs
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

METASPACE = "\u2581"


class Vocabulary:
    """A tokenizer as the generator needs it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        self._style = _style_of(self._backend)
        self._bytes: dict[int, bytes] = {}
        self.lexicon: Any = None  # what grammars need of it, made for the first one
        self.specials = frozenset[int](tokenizer.all_special_ids)

    @cached_property
    def longest(self) -> int:
        """A text of more characters than n times this has more than n tokens. Where a normalizer may take
        characters away, unless it takes fifteen of sixteen."""
        normalizer = getattr(self._backend, "normalizer", None)
        return max(map(len, self._tokenizer.get_vocab())) * (1 if normalizer is None else 16)

    @property
    def described(self) -> str | None:
        """The tokenizer as the text of a tokenizer.json; None where it is of another kind."""
        return None if self._backend is None else str(self._backend.to_str())

    def encode(self, text: str) -> list[int]:
        """Token ids, with what the model wants before a text (Llama's `<s>`)."""
        # The backend itself: transformers' own call changes its settings first, which two threads cannot do.
        # A batch of one: `encode` holds the interpreter's lock, 1 s a megabyte in which nobody is answered.
        ids: list[int] = (
            self._tokenizer(text, verbose=False)["input_ids"]
            if self._backend is None
            else self._backend.encode_batch([text])[0].ids
        )
        return ids

    def piece(self, token: int) -> bytes:
        """What a token adds to a text, special tokens by their name; nothing for an id without a token."""
        if token not in self._bytes:
            self._bytes[token] = self._spell(token)
        return self._bytes[token]

    def shown(self, token: int) -> bytes:
        """As `piece`, but special tokens are nothing."""
        return b"" if token in self.specials else self.piece(token)

    def label(self, token: int) -> str:
        """A token's name in logprobs: its text, or `bytes:\\xf0\\x9f` where it is half a character."""
        piece = self.piece(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def _spell(self, token: int) -> bytes:
        name: str | None = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:
            return b""
        if self._style == "bytes":
            alphabet = _byte_alphabet()
            known = all(character in alphabet for character in name)
            return bytes(alphabet[character] for character in name) if known else name.encode()
        if self._style == "metaspace":
            if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
                return bytes([int(name[3:5], 16)])
            return name.replace(METASPACE, " ").encode()
        return str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False)).encode()


class Utf8:
    """Bytes in, whole characters out; bytes that are none become U+FFFD, as the tokenizer's decoder does."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, piece: bytes) -> str:
        return self._decoder.decode(piece)

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


def text_of(pieces: Sequence[bytes]) -> str:
    return b"".join(pieces).decode(errors="replace")


def _style_of(backend: Any) -> str:
    if backend is None or backend.decoder is None:
        return "plain"
    decoder = json.loads(backend.decoder.__getstate__())
    kinds = {str(each.get("type")) for each in [decoder, *decoder.get("decoders", [])]}
    if "ByteLevel" in kinds:
        return "bytes"
    return "metaspace" if kinds & {"Metaspace", "ByteFallback"} else "plain"


@lru_cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's stand-ins for the 256 bytes: itself where printable, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(others)}
