"""A row becomes an example: which shape it has, and everything that is wrong with it, by key.

`messages`, `prompt_completion`, `preference` are OpenAI's, `text` is the plainest; `alpaca` (instruction,
input, output) and `sharegpt` (conversations of from and value) are what public data sets are written in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from app.examples import Chat, DatasetError, Example, Messages, Pair, Preference, Problem, Text

Shape = Literal["text", "prompt_completion", "messages", "preference", "alpaca", "sharegpt"]
# The keys by which a shape is known.
MARKS: dict[Shape, tuple[str, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "preference": (
        "preferred_output",
        "non_preferred_output",
        "preferred_completion",
        "non_preferred_completion",
    ),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
}
SHAPE_OF: dict[str, Shape] = {key: shape for shape, keys in MARKS.items() for key in keys}
SHAPES = (
    '"text"; "prompt" and "completion"; "messages"; "input", "preferred_output" and "non_preferred_output";'
    ' "instruction", "input" and "output"; or "conversations"'
)
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}


@dataclass
class _Row:
    """A row under examination: problems are collected, not raised, so that all are told at once."""

    number: int
    row: Mapping[str, Any]
    problems: list[Problem] = field(default_factory=list)

    def wrong(self, key: str, message: str) -> None:
        self.problems.append(Problem(self.number, message, key))

    def string(self, key: str) -> str:
        value = self.row.get(key)
        if isinstance(value, str):
            return value
        self.wrong(key, f'"{key}" must be a string{"" if key in self.row else "; it is missing"}')
        return ""


def example(number: int, row: object) -> tuple[Shape, Example]:
    """The shape of a row, and what it says. Raises DatasetError with all of its problems."""
    if not isinstance(row, Mapping):
        raise DatasetError(number, "a row must be a JSON object")
    shape, at = _shape(number, row), _Row(number, row)
    made = READERS[shape](at)
    if at.problems:
        first, *more = at.problems
        raise DatasetError(number, first.message, first.key, more)
    return shape, made


def _shape(number: int, row: Mapping[str, Any]) -> Shape:
    found = {SHAPE_OF[key] for key in SHAPE_OF.keys() & row.keys()}
    if len(found) == 1:
        return found.pop()
    marks = [key for key in SHAPE_OF if key in row]
    here = " and ".join(marks) if marks else "none of them"
    raise DatasetError(number, f"a row has {SHAPES}; here: {here}", marks[-1] if marks else None)


def _text(at: _Row) -> Example:
    return Text(at.number, at.string("text"))


def _pair(at: _Row) -> Example:
    return Pair(at.number, at.string("prompt"), at.string("completion"))


def _chat(at: _Row) -> Example:
    messages = _messages(at, "messages", at.row.get("messages"))
    _refuse_unlearnable(at, "messages", messages)
    return Chat(at.number, messages, _tools(at, "tools", at.row.get("tools")))


def _preference(at: _Row) -> Example:
    given = at.row.get("input")
    said = given if isinstance(given, Mapping) else {}
    if said is not given:
        at.wrong("input", '"input" must be an object that holds "messages"')
        messages: Messages = []
    else:
        messages = _messages(at, "input.messages", said.get("messages"))
    preferred, rejected = (_answers(at, name) for name in ("preferred", "non_preferred"))
    if preferred and preferred == rejected:
        at.wrong("non_preferred_output", "both answers are the same: there is nothing to prefer")
    return Preference(at.number, messages, preferred, rejected, _tools(at, "input.tools", said.get("tools")))


def _answers(at: _Row, name: str) -> Messages:
    keys = [key for key in (f"{name}_output", f"{name}_completion") if key in at.row]
    if len(keys) == 2:
        at.wrong(keys[1], f'"{keys[0]}" and "{keys[1]}" mean the same; give one')
    key = keys[0] if keys else f"{name}_output"
    messages = _messages(at, key, at.row.get(key))
    if messages and not all(m.get("role") in ("assistant", "tool", None) for m in messages):
        at.wrong(key, f'"{key}" holds messages of the assistant')
    elif messages and messages[-1].get("role") == "tool":
        at.wrong(key, f'"{key}" must end with a message of the assistant')
    return messages


def _alpaca(at: _Row) -> Example:
    """The instruction and its input become one message of the user, a blank line between them."""
    if at.row.get("history"):
        at.wrong("history", '"history" is not read; write the conversation as "messages"')
    asked, answer = at.string("instruction"), at.string("output")
    details = at.string("input") if at.row.get("input") is not None else ""
    system = at.string("system") if at.row.get("system") is not None else ""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": f"{asked}\n\n{details}" if details.strip() else asked})
    return Chat(at.number, [*messages, {"role": "assistant", "content": answer}])


def _sharegpt(at: _Row) -> Example:
    turns, messages = at.row.get("conversations"), []
    system = at.string("system") if at.row.get("system") is not None else ""
    if system:
        messages.append({"role": "system", "content": system})
    if not isinstance(turns, list) or not turns:
        at.wrong("conversations", '"conversations" must be a list with at least one turn')
        return Chat(at.number, [])
    for place, turn in enumerate(turns):
        key = f"conversations[{place}]"
        speaker = turn.get("from") if isinstance(turn, Mapping) else None
        if not isinstance(turn, Mapping) or not isinstance(speaker, str) or speaker not in SPEAKERS:
            at.wrong(f"{key}.from", f'a turn needs "from": one of {", ".join(sorted(SPEAKERS))}')
        elif not isinstance(turn.get("value"), str):
            at.wrong(f"{key}.value", '"value" must be a string')
        else:
            messages.append({"role": SPEAKERS[speaker], "content": turn["value"]})
    _refuse_unlearnable(at, "conversations", messages)
    return Chat(at.number, messages, _tools(at, "tools", at.row.get("tools")))


READERS: dict[Shape, Callable[[_Row], Example]] = {
    "text": _text,
    "prompt_completion": _pair,
    "messages": _chat,
    "preference": _preference,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
}


def _messages(at: _Row, key: str, messages: object) -> Messages:
    if not isinstance(messages, list) or not messages:
        at.wrong(key, f'"{key}" must be a list with at least one message')
        return []
    for place, message in enumerate(messages):
        _check_message(at, f"{key}[{place}]", message)
    return [message for message in messages if isinstance(message, dict)]


def _check_message(at: _Row, key: str, message: object) -> None:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(role, str) or role not in ROLES:
        at.wrong(f"{key}.role", f"a message needs a role: one of {', '.join(sorted(ROLES))}")
        return
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None and not _are_objects(calls):
        at.wrong(f"{key}.tool_calls", '"tool_calls" must be a list of objects')
    parts = isinstance(content, list) and all(
        isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content
    )
    if not (isinstance(content, str) or parts or (content is None and calls)):
        at.wrong(f"{key}.content", '"content" must be a string or a list of text parts')
    if "weight" in message and (role != "assistant" or message["weight"] not in (0, 1)):
        at.wrong(f"{key}.weight", '"weight" is 0 or 1, and only an assistant\'s message has one')


def _refuse_unlearnable(at: _Row, key: str, messages: Messages) -> None:
    """Only for messages that are sound: what is missing in a broken one cannot be said."""
    if at.problems:
        return
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        at.wrong(key, "no message of the assistant: there is nothing to learn")
    elif all(message.get("weight") == 0 for message in answers):
        at.wrong(key, "every message of the assistant has weight 0: there is nothing to learn")


def _tools(at: _Row, key: str, tools: object) -> Messages | None:
    if tools is None:
        return None
    if isinstance(tools, list) and _are_objects(tools):
        return tools
    at.wrong(key, '"tools" must be a list of objects')
    return None


def _are_objects(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, dict) for value in values)
