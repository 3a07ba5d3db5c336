"""An example becomes token ids and the spans of them to learn: the one place that decides which.

Reads a Hugging Face folder's tokenizer without transformers, so that a preview in the API and the training
in the worker cannot disagree.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app.dataset import Chat, Example, Pair, Preference, Text
from app.template import DEFAULT_TEMPLATE, compiled, template_of
from app.template_limits import rendered


class EncodingError(ValueError):
    """A tokenizer or template that cannot be used, or an example (in `line`) that it cannot say."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        self.message, self.line = message, line


class Encoded(NamedTuple):
    """Token ids and the half-open spans of them that are targets of the loss."""

    ids: list[int]
    trained: list[tuple[int, int]]

    def prompt(self) -> list[int]:
        """What stands before the first target."""
        return self.ids[: self.trained[0][0]] if self.trained else self.ids


class Turn(NamedTuple):
    """How the assistant's turns are told apart: texts and tokens that end one (besides the end token), and
    the blank that the template puts before its words."""

    stops: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    lead: str = ""


@dataclass(frozen=True)
class Segment:
    """A stretch of an example's text that is learned or not; `special`: the tokenizer adds its own tokens."""

    text: str
    learned: bool
    special: bool = False


class Encoder:
    """A folder's tokenizer and chat template."""

    def __init__(
        self, tokenizer: Tokenizer, end: int, ends: frozenset[int], template: str | None, words: Any
    ) -> None:
        self.tokenizer, self.end, self._ends, self._words = tokenizer, end, ends, words
        self.has_template = template is not None
        self.template = template or DEFAULT_TEMPLATE
        try:
            self._compiled = compiled(self.template)
        except ValueError as error:
            raise EncodingError(str(error)) from None

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """Raises EncodingError when the folder has no tokenizer that can be read without running its code."""
        tokenizer = _tokenizer(folder)
        settings = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
        words = {
            name: _word(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        declared = _ids(_json(folder / "generation_config.json")) or _ids(_json(folder / "config.json"))
        end = tokenizer.token_to_id(words["eos_token"]) if words["eos_token"] else None
        if end is None and not declared:
            raise EncodingError("the tokenizer has no end token (eos_token), so nothing could end a text")
        end = declared[0] if end is None else end
        words["eos_token"] = tokenizer.id_to_token(end)
        return cls(tokenizer, end, frozenset({end, *declared}), template_of(folder, settings), words)

    def encode(self, examples: Sequence[Example], train_on_inputs: bool = False) -> list[Encoded]:
        """Encodes a batch in parallel. A text that is blank has no trained span.

        Raises EncodingError with the line of an example the chat template refuses.
        """
        return self._encode([(e, self._segments(e, train_on_inputs)) for e in examples])

    def encode_answers(self, pairs: Sequence[Preference]) -> list[tuple[Encoded, Encoded]]:
        """The preferred and the other answer of each pair, both after the same prompt, which is not trained.

        Raises EncodingError with the line of a pair that the chat template refuses, or whose prompt it words
        otherwise for one answer than for the other.
        """
        chats = [chat for pair in pairs for chat in _answers(pair)]
        found = self._encode([(chat, self._turns(chat, False, given)) for chat, given in chats])
        both = list(zip(found[::2], found[1::2], strict=True))
        for pair, (preferred, rejected) in zip(pairs, both, strict=True):
            if preferred.prompt() != rejected.prompt():
                raise EncodingError("the chat template words the prompt by its answer", pair.line)
        return both

    def _encode(self, cut: list[tuple[Example, list[Segment]]]) -> list[Encoded]:
        tokens = iter(self._batch([segment for _, segments in cut for segment in segments]))
        return [self._join(example, [(s, next(tokens)) for s in parts]) for example, parts in cut]

    def prompt(self, text: str) -> list[int]:
        """Token ids of a text that is to be continued."""
        return list(self.tokenizer.encode(text).ids)

    def conversation(
        self, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of messages that the assistant answers next, cut into tokens where training cuts them.

        Raises EncodingError when the chat template refuses them.
        """
        chat = Chat(0, list(messages), tools)
        whole = self._render(chat, [_plain(message) for message in messages], ask=True)
        try:
            segments = self._turns(chat, train_on_inputs=False)
        except EncodingError:  # a template that rewrites earlier turns: nothing of the kind was trained
            segments = []
        done = "".join(segment.text for segment in segments)
        if not whole.startswith(done):
            segments, done = [], ""
        first = not segments and not self.has_template
        segments.append(Segment(whole[len(done) :], learned=False, special=first))
        return [token for tokens in self._batch(segments) for token in tokens]

    @cached_property
    def turn(self) -> Turn:
        """Read off the template: what stands around an answer, and between it and what the user says next."""
        question, answer, reply = "Question?", "Answer.", "Reply!"
        roles = ("user", "assistant", "user")
        messages = [{"role": r, "content": c} for r, c in zip(roles, (question, answer, reply), strict=True)]
        chat = Chat(0, messages)
        try:
            before = self._render(chat, messages[:1], ask=True)
            after = self._render(chat, messages[:2], ask=False)
            later = self._render(chat, messages, ask=False)
        except EncodingError:
            return Turn()
        lead, _, tail = after.removeprefix(before).partition(answer)
        lead = lead if after.startswith(before) and not lead.strip() else ""
        between = later.rpartition(reply)[0].rpartition(answer)[2]
        end = self._words.get("eos_token") or ""
        said = tail.replace(end, "").strip() or between.replace(end, "").rstrip()
        token = self.tokenizer.token_to_id(said)
        if token is not None:
            return Turn(ends=frozenset({token}), lead=lead)
        # A model that is not sure of the blank lines is not to run on into the user's turn either.
        stops = dict.fromkeys([said, "\n" + said.lstrip("\n")] if said.startswith("\n") else [said])
        return Turn(tuple(stops) if said.strip() else (), lead=lead)

    def _batch(self, segments: list[Segment]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in segments]
        for special in (True, False):
            at = [i for i, segment in enumerate(segments) if segment.special == special]
            texts = [segments[i].text for i in at]
            for i, encoding in zip(
                at, self.tokenizer.encode_batch_fast(texts, add_special_tokens=special), strict=True
            ):
                found[i] = encoding.ids
        return found

    def _segments(self, example: Example, train_on_inputs: bool) -> list[Segment]:
        if isinstance(example, Text):
            return [Segment(example.text, bool(example.text.strip()), special=example.first)]
        if isinstance(example, Pair):
            # Apart, because generation too gets the prompt's tokens first and goes on from there.
            learn = bool(example.completion.strip())
            prompt = Segment(example.prompt, train_on_inputs and learn, special=True)
            return [prompt, Segment(example.completion, learn)]
        if isinstance(example, Preference):
            raise EncodingError("a preference pair is for the method dpo alone", example.line)
        return self._turns(example, train_on_inputs)

    def _turns(self, chat: Chat, train_on_inputs: bool, given: int = 0) -> list[Segment]:
        """The conversation as the model will see it, cut where each turn of the assistant begins and ends.

        The first `given` messages are one segment, which is not learned.
        """
        messages = [_plain(message) for message in chat.messages]
        segments: list[Segment] = []
        done = ""
        for at, message in enumerate(chat.messages):
            if message["role"] != "assistant" or at < given:
                continue
            before = self._render(chat, messages[:at], ask=True)
            after = self._render(chat, messages[: at + 1], ask=False)
            if not after.startswith(before):  # a prompt that the template drops once it is answered
                before = self._render(chat, messages[:at], ask=False)
            if not (before.startswith(done) and after.startswith(before)):
                raise EncodingError(
                    "the chat template rewrites earlier turns; give one answer per row", chat.line
                )
            first = not segments and not self.has_template
            segments.append(Segment(before[len(done) :], train_on_inputs, special=first))
            segments.append(Segment(after[len(before) :], train_on_inputs or message.get("weight", 1) != 0))
            done = after
        return segments

    def _render(self, chat: Chat, messages: list[dict[str, Any]], ask: bool) -> str:
        try:
            return rendered(
                self._compiled, messages=messages, tools=chat.tools, add_generation_prompt=ask, **self._words
            )
        except Exception as error:  # a template is a program of its own
            raise EncodingError(
                f"the chat template refuses the messages: {str(error)[:200]}", chat.line
            ) from None

    def _join(self, example: Example, parts: list[tuple[Segment, list[int]]]) -> Encoded:
        ids: list[int] = []
        trained: list[tuple[int, int]] = []
        for segment, tokens in parts:
            if segment.learned and tokens:
                trained.append((len(ids), len(ids) + len(tokens)))
            ids += tokens
        whole = not isinstance(example, Text) or example.last
        # A chat template may say the end token itself, and a line break after it.
        tail = ids[-2:] if isinstance(example, Chat) else ids[-1:]
        if whole and not self._ends.intersection(tail):
            if parts and parts[-1][0].learned:
                trained.append((len(ids), len(ids) + 1))
            ids.append(self.end)
        return Encoded(ids, trained)


def _tokenizer(folder: Path) -> Tokenizer:
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
        elif vocabulary.is_file() and merges.is_file():  # GPT-2 as first published
            tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
        else:
            raise EncodingError("the model's folder has no tokenizer.json")
    except EncodingError:
        raise
    except Exception as error:  # tokenizers raises plain Exception
        raise EncodingError(f"the model's tokenizer cannot be read: {str(error)[:200]}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise EncodingError(f"{path.name} is not JSON") from None
    return found if isinstance(found, dict) else {}


def _word(token: object) -> str | None:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _ids(config: dict[str, Any]) -> list[int]:
    found = config.get("eos_token_id")
    return [i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int)]


def _answers(pair: Preference) -> list[tuple[Chat, int]]:
    """Two conversations, and how many messages of each are the prompt. All of an answer is learned."""
    return [
        (
            Chat(pair.line, pair.messages + [m | {"weight": 1} for m in answer], pair.tools),
            len(pair.messages),
        )
        for answer in (pair.preferred, pair.rejected)
    ]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    rest = {key: value for key, value in message.items() if key not in ("weight", "content")}
    if rest.get("role") == "developer":
        rest["role"] = "system"  # the same thing by its newer name, which templates do not know
    return {**rest, "content": content if content is not None else ""}
