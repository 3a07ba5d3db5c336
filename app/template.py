"""Chat templates: a model's own, run in a sandbox as Hugging Face runs them, and the default one."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from app.template_limits import LimitedEnvironment

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
{{- '\\n\\n' if not (message.role == 'assistant' and loop.last) or add_generation_prompt -}}
{%- endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""


def template_of(folder: Path, settings: dict[str, Any]) -> str | None:
    """The folder's own: in a file, or in its tokenizer's settings."""
    file, found = folder / "chat_template.jinja", settings.get("chat_template")
    if file.is_file():
        found = file.read_text(encoding="utf-8")
    if isinstance(found, list):  # several named ones
        found = next((t.get("template") for t in found if t.get("name") == "default"), None)
    return found if isinstance(found, str) else None


class _Generation(Extension):
    """Templates may mark the assistant's words with {% generation %}; we find them ourselves."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compiled(template: str) -> Template:
    """Raises ValueError for one that cannot be read. What it refuses when it is rendered is any exception."""
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise ValueError(f"the chat template is longer than {MAX_TEMPLATE_CHARACTERS:,} characters")
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.replace_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _raise
    now: Callable[[str], str] = lambda form: datetime.now().astimezone().strftime(form)  # noqa: E731
    environment.globals["strftime_now"] = now
    try:
        return environment.from_string(template)
    except (TemplateError, RecursionError, ValueError, MemoryError) as error:
        raise ValueError(f"the chat template cannot be read: {error}") from None


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja's own escapes for HTML


def _raise(message: str) -> None:
    raise TemplateError(message)
