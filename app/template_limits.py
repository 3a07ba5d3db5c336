"""The sandbox of chat templates: besides what jinja2's own forbids, a rendering may take only so much.

A template is a program that comes with a model, and a line of it can ask for a loop of 10^15 turns or a text
of 10^10 characters. Every turn, call, filter and joined text costs steps; what is about to become large is
measured before it is made.
"""

import re
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

STEPS = 3_000_000  # a conversation of 16 MB takes two thirds of it
SECONDS = 5.0  # where steps turn out to be slow ones
LONGEST = 32_000_000  # characters of a text, items of a list
LARGEST = 100_000  # as an argument: a width, a count
MOST_BITS = 1024  # of a number
WIDE = re.compile(r"\d{6,}|\*")
# What takes a list for a list; any other filter may write all of it out.
STRUCTURAL = frozenset((
    "abs", "attr", "batch", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items",
    "last", "length", "list", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "select",
    "selectattr", "slice", "sort", "sum", "unique",
))  # fmt: skip
TEXTUAL = frozenset((
    "capitalize", "e", "escape", "filesizeformat", "format", "indent", "join", "lower", "replace", "safe",
    "string", "striptags", "title", "tojson", "trim", "truncate", "upper", "urlencode", "wordcount",
))  # fmt: skip
METHODS = frozenset((
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "format_map", "index",
    "isalnum", "isalpha", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "isupper", "join",
    "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
    "title", "upper", "zfill",
))  # fmt: skip
GLOBALS = ("range", "dict", "namespace")


class Exceeded(TemplateError):
    """A template that would go on for too long, or write too much."""


class _Budget:
    def __init__(self) -> None:
        self._left = STEPS
        self._until = time.monotonic() + SECONDS

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0 or time.monotonic() > self._until:
            raise Exceeded("it takes too many steps")


_budget: ContextVar[_Budget] = ContextVar("template_budget")


def rendered(template: Any, **values: object) -> str:
    """The template's text for these values. Raises Exceeded, and whatever a template may raise."""
    token = _budget.set(_Budget())
    try:
        return str(template.render(**values))
    finally:
        _budget.reset(token)


def _spend(steps: int) -> None:
    # Outside of a rendering, when a template is compiled, nothing is worked out beforehand.
    budget = _budget.get(None)
    if budget is None:
        raise Exceeded("there is no rendering under way")
    budget.spend(steps)


def _weigh(value: object) -> None:
    """Charge for something that was made."""
    if isinstance(value, str):
        _spend(1 + len(value) // 64)
    elif isinstance(value, list | tuple | dict | set):
        _spend(1 + len(value) // 8)
    else:
        _spend(1)


def _bound(characters: int) -> None:
    if characters > LONGEST:
        raise Exceeded(f"it makes a text of {characters:,} characters")


def _written(value: object) -> int:
    """About how many characters the value is, written out; walks it until that is too many."""
    characters, left = 0, [value]
    while left:
        at = left.pop()
        characters += len(at) + 4 if isinstance(at, str) else 64
        _bound(characters)
        if isinstance(at, dict):
            left += at.keys()
            left += at.values()
        elif isinstance(at, list | tuple | set):
            _bound(len(at))
            left += at
    return characters


def _check_arguments(arguments: Iterable[object]) -> None:
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > LARGEST:
            raise Exceeded(f"it asks for {LARGEST:,} and more")


def _check_replaced(text: str, arguments: tuple[Any, ...]) -> None:
    if len(arguments) >= 2:
        old, new = str(arguments[0]), str(arguments[1])
        _bound(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def _joined(pieces: Iterable[str]) -> str:
    """What a block, a macro or `~` wrote, as one text."""
    found, characters = [], 0
    for piece in pieces:
        characters += len(piece)
        _bound(characters)
        found.append(piece)
    _spend(1 + characters // 64)
    return "".join(found)


def _filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passes = getattr(function, "jinja_pass_arg", None) is not None

    def limited(*arguments: Any, **named: Any) -> Any:
        given = arguments[1:] if passes else arguments
        _spend(1)
        _check_arguments([*given[1:], *named.values()])
        if name in TEXTUAL:
            values = given[0]
            if name == "join" and not isinstance(values, str | list | tuple | dict | set):
                values = list(values)
                arguments = (*arguments[: int(passes)], values, *given[1:])
            size = _written(values)
            if name == "join":
                _bound(size + len(values) * _written([*given[1:], *named.values()]))
            if name == "replace":
                _check_replaced(str(values), (*given[1:], *named.values()))
            if name == "format" and WIDE.search(str(values)):
                raise Exceeded("it asks for a wide text")
            if name == "indent":
                widths = [len(w) if isinstance(w, str) else int(w) for w in (4, *given[1:], *named.values())]
                _bound(size + max(widths) * (str(values).count("\n") + 1))
        found = function(*arguments, **named)
        _weigh(found)
        return found

    for mark in ("jinja_pass_arg", "jinja_async_variant"):
        if hasattr(function, mark):
            setattr(limited, mark, getattr(function, mark))
    return limited


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, where everything that may grow is charged for."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_joined)

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self._output, optimized=False, **options)
        self.filters = {
            name: _filter(name, function)
            for name, function in self.filters.items()
            if name in STRUCTURAL | TEXTUAL
        }
        self.globals = {name: self.globals[name] for name in GLOBALS}

    def replace_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Another one of that name, with its limits."""
        self.filters[name] = _filter(name, function)

    @staticmethod
    def _output(value: object) -> object:
        if not isinstance(value, str):
            _written(value)
        return value

    @property
    def tick(self) -> None:
        """A turn of a loop, or the beginning of a macro: looked at, for a call takes ten times as long."""
        _spend(1)

    def tilde(self, *parts: object) -> str:
        """`a ~ b`."""
        return _joined(str(part) for part in parts if _written(part))

    def _generate(self, source: nodes.Template, *more: Any, **named: Any) -> str:
        repeated: list[Any] = list(source.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
        for node in repeated:
            node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("tick")))
        for parent in list(source.find_all(nodes.Node)):
            for name, value in parent.iter_fields():
                setattr(parent, name, _without_tilde(value))
        return super()._generate(source, *more, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        for one, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(one, str | list | tuple) and isinstance(other, int):
                _bound(len(one) * other)
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _bound(len(left) + len(right))
        if operator == "%" and isinstance(left, str):
            _bound(_written(left) + _written(right))
            if WIDE.search(left):
                raise Exceeded("it asks for a wide text")
        bits = [n.bit_length() for n in (left, right) if isinstance(n, int)]
        if len(bits) == 2:
            most = bits[0] * abs(right) if operator == "**" and bits[1] < MOST_BITS else sum(bits)
            if most > MOST_BITS:
                raise Exceeded("it makes a number of too many digits")
        found = super().call_binop(context, operator, left, right)
        _weigh(found)
        return found

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Methods of texts that cannot blow them up, and whatever the sandbox lets through."""
        _spend(1)
        # The sandbox wraps `format`.
        text = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(text, str):
            name = __obj.__name__
            if name not in METHODS:
                raise Exceeded(f"it calls {name} of a text, which is not at hand")
            _check_arguments([*args, *kwargs.values()])
            size = len(text) + _written(args) + _written(kwargs)
            if name == "replace":
                _check_replaced(text, args)
            if name == "join" and args:
                args = (list(args[0]),)
                size = _written(args) + len(text) * len(args[0])
            if name.startswith("format"):
                size *= text.count("{") + 1
                if WIDE.search(text):
                    raise Exceeded("it asks for a wide text")
            _bound(size)
        found = super().call(__context, __obj, *args, **kwargs)
        _weigh(found)
        return found


def _without_tilde(value: Any) -> Any:
    """A node's field with every `a ~ b` made a call, inner ones when their parents' turn comes."""
    if isinstance(value, nodes.Concat):
        return nodes.Call(nodes.EnvironmentAttribute("tilde"), list(value.nodes), [], None, None)
    if isinstance(value, list):
        return [_without_tilde(each) for each in value]
    return value
