"""The OpenAPI document: what FastAPI reads off the routes, and what it cannot know of them: how they fail,
what they answer, and the bodies that they read by themselves as they stream in.

tests/conformance/test_document.py holds it against a live server.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app import answer_shapes as shapes
from app.dry_run_shape import DryRun

JsonObject = dict[str, Any]
BELOW_KEY = ("/v1", "/metrics")
JOBS = "/v1/fine_tuning/jobs"
# What a success holds, by call; for calls that are not here: an object.
ANSWERS: dict[str, tuple[type[BaseModel], ...]] = {
    "POST /v1/files": (shapes.File,),
    "GET /v1/files": (shapes.Files,),
    "GET /v1/files/{file_id}": (shapes.File,),
    "DELETE /v1/files/{file_id}": (shapes.Deleted,),
    f"POST {JOBS}": (shapes.Job, DryRun),
    f"GET {JOBS}": (shapes.Jobs,),
    f"GET {JOBS}/{{job_id}}": (shapes.Job,),
    f"POST {JOBS}/{{job_id}}/cancel": (shapes.Job,),
    f"POST {JOBS}/{{job_id}}/pause": (shapes.Job,),
    f"POST {JOBS}/{{job_id}}/resume": (shapes.Job,),
    f"GET {JOBS}/{{job_id}}/events": (shapes.Events,),
    f"GET {JOBS}/{{job_id}}/attempts": (shapes.Attempts,),
    f"GET {JOBS}/{{job_id}}/checkpoints": (shapes.Checkpoints,),
    f"GET {JOBS}/{{job_id}}/metrics": (shapes.Metrics,),
    "GET /v1/models": (shapes.Models,),
    "GET /v1/models/{model}": (shapes.Model,),
    "DELETE /v1/models/{model}": (shapes.Deleted,),
    "POST /v1/completions": (shapes.Completion,),
}
# Successes that are not JSON, or not always.
MEDIA = {
    "GET /metrics": ("text/plain", "application/openmetrics-text"),
    "GET /v1/files/{file_id}/content": ("application/octet-stream",),
    f"GET {JOBS}/{{job_id}}/events/stream": ("text/event-stream",),
    "GET /v1/models/{model}/download": ("application/zip",),
    "GET /v1/models/{model}/files/{path}": ("application/octet-stream",),
    "POST /v1/completions": ("application/json", "text/event-stream"),
    "POST /v1/chat/completions": ("application/json", "text/event-stream"),
}
# What else a call may answer.
ALSO = {
    "GET /readyz": {"503": "The database does not answer, or its schema is older"},
    "GET /v1/files/{file_id}/content": {"206": "A range of it", "416": "No such range"},
    f"GET {JOBS}/{{job_id}}/events/stream": {"204": "The job has ended, and all of it has been sent"},
}
_BYTES = {"type": "string", "format": "binary"}
# Bodies that routes read by themselves, piece by piece.
FORMS: dict[str, JsonObject] = {
    "POST /v1/files": {
        "type": "object",
        "required": ["file", "purpose"],
        "properties": {
            "purpose": {"enum": ["fine-tune", "assistants", "batch", "vision", "user_data", "evals"]},
            "expires_after[anchor]": {"const": "created_at"},
            "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
            "file": _BYTES,
        },
    },
    "POST /v1/uploads/{upload_id}/parts": {
        "type": "object",
        "required": ["data"],
        "properties": {"data": _BYTES},
    },
}
FAILURES = {
    "400": "Bad input, named in `param`; or a thing in the wrong state",
    "401": "No key, or one that is unknown, expired or revoked",
    "403": "The key may not do this",
    "404": "Unknown, or somebody else's",
    "413": "More bytes than the limit",
    "429": "Too many requests, or a full queue; with `retry-after`",
    "503": "A part of the service is away for now; with `retry-after`",
    "507": "Too little free disk",
}


def document(app: FastAPI) -> JsonObject:
    """The app's document, made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        _complete(made)
        app.openapi_schema = made
    return app.openapi_schema


def _complete(made: JsonObject) -> None:
    components = made.setdefault("components", {})
    schemas: JsonObject = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own 422, which is never sent
        schemas.pop(name, None)
    models = {model for group in ANSWERS.values() for model in group} | {shapes.Error}
    inputs = [(model, "serialization") for model in sorted(models, key=lambda model: model.__name__)]
    _, found = models_json_schema(inputs, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    for name, schema in found["$defs"].items():
        schemas.setdefault(name, schema)
    for path, operations in made["paths"].items():
        for verb, operation in operations.items():
            _describe(f"{verb.upper()} {path}", operation)


def _describe(call: str, operation: JsonObject) -> None:
    verb, path = call.split(" ", 1)
    responses: JsonObject = operation["responses"]
    responses.pop("422", None)
    success = responses.setdefault("200", {"description": "Done"})
    if group := ANSWERS.get(call):
        references = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in group]
        schema = references[0] if len(references) == 1 else {"anyOf": references}
        success["content"] = {"application/json": {"schema": schema}}
    if form := FORMS.get(call):
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    for media in MEDIA.get(call, ()):
        if media == MEDIA[call][0] and media != "application/json":
            success["content"] = {}
        success.setdefault("content", {}).setdefault(media, {"schema": {"type": "string"}})
    for status, meaning in ALSO.get(call, {}).items():
        responses[status] = {"description": meaning}
    if path.startswith(BELOW_KEY):
        for status in _failures(verb, path, operation):
            responses[status] = {
                "description": FAILURES[status],
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            }


def _failures(verb: str, path: str, operation: JsonObject) -> list[str]:
    named = {parameter["name"] for parameter in operation.get("parameters", ())}
    can_miss = "{" in path or "after" in named or path.endswith("completions")
    found = ["400", "401", "403", "429", "503"]
    found += ["404"] if can_miss else []
    found += ["413", "507"] if verb == "POST" else []
    return sorted(found)
