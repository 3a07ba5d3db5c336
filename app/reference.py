"""The API reference at /docs: the OpenAPI document as one plain page, made here, so that it works offline."""

import re
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse

from app.recipe import Recipe

router = APIRouter(include_in_schema=False)
Schema = dict[str, Any]
REQUIRED = object()
VERBS = ("get", "post", "delete")
STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font: 13px/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .8rem; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-top: 1px solid var(--line); }
td + td { width: 25%; } td + td + td { width: 55%; }
td:first-child { white-space: nowrap; }
h2 { margin-top: 2.5rem; } h3 { margin: 1.8rem 0 .2rem; font-size: 1rem; }
nav a { margin-right: 1rem; }
"""
EXAMPLE = """
from openai import OpenAI

client = OpenAI(base_url="{url}v1", api_key=open("<home>/key").read().strip())
file = client.files.create(file=open("train.jsonl", "rb"), purpose="fine-tune")
job = client.fine_tuning.jobs.create(
    model="tiny-gpt2",
    training_file=file.id,
    extra_body={{"hyperparameters": {{"learning_rate": 2e-3, "num_epochs": 3}}}},
)
"""


def _kind(schema: Schema, schemas: Schema) -> str:
    """A schema in a few words: "integer from 0", "string or null"."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return _kind(schemas[name], schemas) if "enum" in schemas[name] else "object"
    if "anyOf" in schema:
        kinds = [_kind(part, schemas) for part in schema["anyOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        return " | ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        kind = f"list of {_kind(schema.get('items', {}), schemas)}"
    bounds = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "to {}",
        "exclusiveMaximum": "below {}",
        "minLength": "at least {} characters",
        "maxLength": "at most {} characters",
        "maxItems": "at most {} items",
    }
    return " ".join([kind, *(text.format(schema[key]) for key, text in bounds.items() if key in schema)])


def _row(name: str, kind: str, default: object, meaning: str) -> str:
    shown = f" Default: <code>{escape(str(default))}</code>."
    if default == REQUIRED:
        shown = " Required."
    elif default in (None, ""):
        shown = ""
    cells = (f"<code>{escape(name)}</code>", escape(kind), escape(meaning) + shown)
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _fields(schema: Schema, schemas: Schema, prefix: str = "") -> list[str]:
    """A row for each field of a body, those of inner objects under dotted names."""
    rows = []
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        default = REQUIRED if name in required else field.get("default")
        default = None if isinstance(default, dict) else default
        rows.append(_row(prefix + name, _kind(field, schemas), default, field.get("description", "")))
        for part in [field, *field.get("anyOf", [])]:
            inner = schemas.get(str(part.get("$ref", "")).rsplit("/", 1)[-1], {})
            if "properties" in inner:
                rows += _fields(inner, schemas, f"{prefix}{name}.")
    return rows


def _operation(path: str, verb: str, operation: Schema, schemas: Schema) -> str:
    rows = [
        _row(
            f"{parameter['name']} ({parameter['in']})",
            _kind(parameter["schema"], schemas),
            REQUIRED if parameter.get("required") else parameter["schema"].get("default"),
            str(parameter.get("description") or parameter["schema"].get("description") or ""),
        )
        for parameter in operation.get("parameters", [])
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    rows += _fields(schemas.get(str(body.get("$ref", "")).rsplit("/", 1)[-1], body), schemas)
    text = escape(str(operation.get("description") or operation.get("summary") or ""))
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    return f"<h3><code>{verb.upper()} {escape(path)}</code></h3><p>{_marked(text)}</p>{table}"


def _marked(text: str) -> str:
    """Paragraphs and `code` of a docstring."""
    coded = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return coded.replace("\n\n", "</p><p>")


def render(document: Schema, base_url: str) -> str:
    """The page for an OpenAPI document."""
    schemas = document.get("components", {}).get("schemas", {})
    sections: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for verb in VERBS:
            if verb in operations:
                tag = operations[verb].get("tags", ["other"])[0]
                sections.setdefault(tag, []).append(_operation(path, verb, operations[verb], schemas))
    recipe = Recipe.model_json_schema()
    sections["hyperparameters"] = [
        "<p>Any of these inside <code>hyperparameters</code> of a job; OpenAI's <code>n_epochs</code>,"
        " <code>batch_size</code> and <code>learning_rate_multiplier</code> work too.</p>",
        f"<table>{''.join(_fields(recipe, recipe.get('$defs', {})))}</table>",
    ]
    links = "".join(f'<a href="#{tag}">{tag}</a>' for tag in sections)
    parts = "".join(f'<h2 id="{tag}">{tag}</h2>{"".join(texts)}' for tag, texts in sections.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{document["info"]["title"]} API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>{document['info']['title']} API</h1><p>{escape(document['info']['description'])}"
        f' The document behind this page: <a href="/openapi.json">openapi.json</a>.</p>'
        f"<pre>{escape(EXAMPLE.format(url=base_url).strip())}</pre><nav>{links}</nav>{parts}</html>"
    )


@router.get("/openapi.json")
async def document(request: Request) -> Schema:
    """The OpenAPI document."""
    app: FastAPI = request.app
    return app.openapi()


@router.get("/docs", response_class=HTMLResponse)
async def reference(request: Request) -> str:
    """Every call with its parameters."""
    app: FastAPI = request.app
    return render(app.openapi(), str(request.base_url))
