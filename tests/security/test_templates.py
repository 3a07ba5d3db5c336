"""A chat template is a program that comes with a model: it can neither look around nor go on for ever."""

import resource

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app import template_limits
from app.template import compiled
from app.template_limits import rendered

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Hi {{ there }} \n"},
    {
        "role": "assistant",
        "content": "<think>hm</think>\n\nHello.",
        "tool_calls": [{"f": {"a": 1, "b": "é"}}],
    },
    {"role": "user", "content": "Bye"},
]
LONG = "{% set s = 'a' * 1000000 %}"
GROW = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = "
BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that skip": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}"
    "{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n+1) }}{{ f(n+1) }}{% endmacro %}{{ f(0) }}",
    "wide recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(50) }}",
    "a long text": "{{ 'a' * 10**10 }}",
    "doubling by tilde": GROW + "ns.x ~ ns.x %}{% endfor %}",
    "doubling by plus": GROW + "ns.x + ns.x %}{% endfor %}",
    "doubling by join": GROW + "[ns.x, ns.x]|join %}{% endfor %}",
    "doubling by block": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "nesting": GROW + "[ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "a wide field": "{{ '{:1000000000}'.format(1) }}",
    "a wide field by argument": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a wide number by argument": "{{ '%*d' % (1000000000, 1) }}",
    "a wide filter": "{{ '%1000000000d'|format(1) }}",
    "padding": "{{ 'a'.ljust(1000000000) }}",
    "indentation": LONG + "{{ (s.replace('a', 'a\n'))|indent(100000) }}",
    "replacing": LONG + "{{ s.replace('a', s) }}",
    "replacing by filter": LONG + "{{ s|replace('a', s) }}",
    "joining": LONG + "{{ s.join([s] * 1000) }}",
    "joining by filter": LONG + "{{ ([s] * 100000)|join }}",
    "a list written out": LONG + "{{ [s] * 100000 }}",
    "a list as JSON": LONG + "{{ ([s] * 100000)|tojson }}",
    "translating": LONG + "{{ s.translate({97: s}) }}",
    "lists": "{% for i in range(99999) %}{% set x = range(99999)|list %}{% endfor %}",
    "output": "{% for i in range(99999) %}{{ 'a' * 30000000 }}{% endfor %}",
    "a great power": "{{ 9 ** (9 ** 9) }}",
    "squaring": "{% set ns = namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}"
    "{% endfor %}",
    "blind text": "{% for x in lipsum(n=1000000) %}{% endfor %}",
}  # fmt: skip
PEEKING = (
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ namespace.__init__.__globals__.os }}",
    "{{ self.__init__.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
    "{{ messages|attr('__class__')|attr('__mro__') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_that_would_go_on_or_grow_for_ever_is_stopped(
    bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "STEPS", 300_000)  # a tenth, for the test's sake
    if bomb == "loops that skip":  # the one that only the clock ends
        monkeypatch.setattr(template_limits, "SECONDS", 0.2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Exception, match=r"steps|characters|and more|wide|digits|at hand|undefined|recursion"):
        rendered(compiled(BOMBS[bomb]), messages=MESSAGES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB


@pytest.mark.parametrize("template", PEEKING)
def test_a_template_sees_nothing_but_what_it_is_given(template: str) -> None:
    try:
        text = rendered(compiled(template), messages=MESSAGES)
    except Exception:
        return
    assert text.strip("[]() ,") in ("", "None"), text


def test_a_template_that_is_as_long_as_a_book_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than"):
        compiled("{{ messages }}" * 10_000)


# What the templates of today's models use, in one.
USUAL = """\
{%- macro note(text, loud=false) -%}[{{ text | upper if loud else text }}]{%- endmacro -%}
{%- set ns = namespace(last=-1, seen='') -%}
{%- if messages[0].role == 'system' -%}
<|system|>{{ messages[0]['content'] | trim }}\n{% set rest = messages[1:] %}
{%- else -%}{% set rest = messages %}{%- endif -%}
{%- for message in rest[::-1] %}{% if message.role == 'user' and ns.last < 0 %}
{%- set ns.last = (rest | length) - 1 - loop.index0 %}{% endif %}{% endfor -%}
{%- for message in rest -%}
{%- set content = message.content if message.content is string else '' -%}
{%- if '</think>' in content -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}
{{- '<|' ~ message['role'] ~ '|>' + content.strip() + ('\\n' if not loop.last else '') -}}
{%- if message.tool_calls is defined and message.tool_calls -%}
{%- for call in message.tool_calls %}{{ call | tojson }}{{ call.f | tojson(indent=2) }}
{%- for key, value in call.f | items %}{{ key }}={{ value }};{% endfor %}{% endfor -%}
{%- endif -%}
{%- set ns.seen = ns.seen ~ loop.index -%}
{%- if loop.index > 90 %}{% break %}{% endif -%}
{%- endfor -%}
{{ note('end', loud=true) }}{{ ns.last }}{{ ns.seen }}{{ rest | map(attribute='role') | join(', ') }}
{{- rest | selectattr('role', 'equalto', 'user') | list | length }}{{ '%s-%d' | format('x', 3) }}
{{- ['b', 'a'] | sort | first }}{{ 7 // 2 + 2 ** 5 - 3 * 2 }}{{ 'x' * 3 }}{{ none | default('d', true) }}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}
"""


def test_a_usual_template_says_what_jinja_says() -> None:
    plain = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    ours = compiled(USUAL)
    plain.filters["tojson"] = _json
    for ask in (False, True):
        values = {"messages": MESSAGES, "add_generation_prompt": ask}
        assert rendered(ours, **values) == plain.from_string(USUAL).render(**values)


def _json(value: object, indent: int | None = None) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, indent=indent)


def test_a_conversation_of_megabytes_is_within_bounds() -> None:
    messages = [{"role": "user", "content": "word " * 20_000}] * 80
    assert len(rendered(compiled(USUAL), messages=messages, add_generation_prompt=True)) > 7_000_000
