"""An example becomes token ids and the spans of them to learn: the one place that decides which.

Reads a Hugging Face folder's tokenizer without transformers, so that a preview in the API and the training
in the worker cannot disagree.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from app.dataset import Chat, Example, Pair, Preference, Text

MAX_TEMPLATE_CHARACTERS = 100_000
# For models without a template. A turn of the assistant ends with the end token, as generation does.
DEFAULT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
Assistant: {{ message.content }}{{ eos_token }}
{%- elif message.role == 'user' -%}
User: {{ message.content }}
{%- else -%}
{{ message.content }}
{%- endif -%}
{{- '\\n\\n' if not (message.role == 'assistant' and loop.last) -}}
{%- endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""


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
        self._compiled = _compile(self.template)

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
        return cls(tokenizer, end, frozenset({end, *declared}), _template(folder, settings), words)

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
            return self._compiled.render(
                messages=messages, tools=chat.tools, add_generation_prompt=ask, **self._words
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


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    file, found = folder / "chat_template.jinja", settings.get("chat_template")
    if file.is_file():
        found = file.read_text(encoding="utf-8")
    if isinstance(found, list):  # several named ones
        found = next((t.get("template") for t in found if t.get("name") == "default"), None)
    return found if isinstance(found, str) else None


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
    return {**rest, "content": content if content is not None else ""}


class _Generation(Extension):
    """Templates may mark the assistant's words with {% generation %}; we find them ourselves."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(template: str) -> Template:
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise EncodingError(f"the chat template is longer than {MAX_TEMPLATE_CHARACTERS:,} characters")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    now: Callable[[str], str] = lambda form: datetime.now().astimezone().strftime(form)  # noqa: E731
    environment.globals["strftime_now"] = now
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise EncodingError(f"the chat template cannot be read: {error}") from None


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja's own escapes for HTML


def _raise(message: str) -> None:
    raise TemplateError(message)
