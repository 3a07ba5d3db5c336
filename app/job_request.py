"""What a request to train may say, and what it means: everything about it that needs no database."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from app import integrations
from app.body import Body
from app.errors import InvalidRequest
from app.hyperparameters import RecipeError
from app.integrations import Integration
from app.priority import Priority
from app.recipe import Recipe
from app.setting_types import Label

Values = dict[str, Any]


class MethodOptions(Body):
    """What `method.<type>` holds."""

    hyperparameters: Values = Field({}, description="Any field of the recipe, or OpenAI's three")


class Method(Body):
    """How to train. Siblings for other types than `type` are ignored, as OpenAI does."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: MethodOptions = Field(MethodOptions(), description="Learn the answers of a file")
    dpo: MethodOptions = Field(
        MethodOptions(),
        description="Learn which of two answers is preferred; the file holds preference pairs, and the "
        "hyperparameters may say `beta`",
    )
    reinforcement: Values = Field({})


class Requires(Body):
    """What a worker must have to train it."""

    labels: list[Label] = Field([], max_length=16, description="All of these: docs/scaling.md lists them")
    memory_bytes: int | None = Field(
        None, gt=0, le=2**62, description="Memory of its device; counted as what the job takes of it"
    )


class JobRequest(Body):
    """A request to train."""

    model: str = Field(min_length=1, max_length=256, description="Base model, or one of yours")
    training_file: str = Field(description="Id of a file with purpose `fine-tune`")
    validation_file: str | None = Field(None, description="Id of a file to evaluate on")
    suffix: str | None = Field(
        None, min_length=1, max_length=64, pattern=r"^[\w.-]+$", description="Goes into the model's name"
    )
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Reported; 42 when absent")
    metadata: dict[str, str] | None = Field(None, max_length=16)
    refuse_on: list[str] | None = Field(
        None, max_length=32, description="Codes of findings (docs/data.md) on which not to train"
    )
    integrations: list[Integration] | None = Field(
        None, max_length=5, description="Where to report it beside here: docs/integrations.md"
    )
    method: Method | None = None
    hyperparameters: Values = Field({}, description="As `method.<type>.hyperparameters`; either will do")
    from_checkpoint: str | None = Field(
        None,
        pattern=r"^ftjob-[0-9a-f]{1,64}:[0-9]{1,18}$",
        description="`<job>:<step>`: begin with the weights of that checkpoint of yours; `model` is then its"
        " job's model or its base, and the new job's `model` is the checkpoint's name",
    )
    priority: Priority = Field(
        "normal",
        description="`high` goes before all others, makes one of them give way where no worker is free,"
        " and asks for a key with the scope `jobs:high`; `low` goes after all others",
    )
    requires: Requires | None = Field(
        None, description="A job that no worker suits waits for one, and its events say so"
    )
    dry_run: bool = Field(
        False, description="Make no job; answer with what it would do, cost and be warned of"
    )


def merge(request: JobRequest) -> tuple[Method, Values]:
    """The method, and the hyperparameters of both places; the same one said twice must agree."""
    method = request.method or Method(type="supervised")
    if method.type == "reinforcement":
        raise InvalidRequest(
            "Reinforcement fine-tuning is not offered; use `supervised` or `dpo`.",
            param="method.type",
            code="unsupported_method",
        )
    options: MethodOptions = getattr(method, method.type)
    merged = {k: v for k, v in request.hyperparameters.items() if v is not None}
    for key, value in options.hyperparameters.items():
        if value is None:
            continue
        if merged.get(key, value) != value:
            raise InvalidRequest(
                f"`{key}` is given twice and differs: in `hyperparameters` and in `method`.",
                param=f"hyperparameters.{key}",
                code="contradictory_value",
            )
        merged[key] = value
    if request.seed is not None:
        if merged.get("seed", request.seed) != request.seed:
            raise InvalidRequest(
                "`seed` is given twice and differs.", param="seed", code="contradictory_value"
            )
        merged["seed"] = request.seed
    return method, merged


def recipe(method: Method, given: Values) -> Recipe:
    if method.type == "reinforcement":
        raise InvalidRequest("Reinforcement fine-tuning is not offered.", param="method.type")
    try:
        return Recipe.from_request(given, method.type)
    except RecipeError as error:
        where = "method.type" if error.field == "method" else f"hyperparameters.{error.field}"
        raise InvalidRequest(error.message, param=where, code=error.code) from error


def refuse_other_shape(method: Method, file_id: str, shape: str | None, param: str) -> None:
    """Preference pairs are for dpo, and dpo is for them. A file of no known shape is left to the trainer."""
    if shape is None or (shape == "preference") == (method.type == "dpo"):
        return
    message = (
        f"{file_id} holds preference pairs: set `method.type` to `dpo`, or name a file of another shape."
    )
    if method.type == "dpo":
        message = (
            f"{file_id} holds no preference pairs (its rows are of shape `{shape}`), and `dpo` trains them"
            " alone: rows of `input`, `preferred_output` and `non_preferred_output`."
        )
    raise InvalidRequest(message, param=param, code=f"invalid_{param}")


def refuse_what_is_not_offered(request: JobRequest, offered: Sequence[str]) -> None:
    """Raises InvalidRequest, also for metadata that is too long."""
    integrations.check(request.integrations or (), offered)
    for key, value in (request.metadata or {}).items():
        if len(key) > 64 or len(value) > 512:
            raise InvalidRequest(
                "metadata takes keys of at most 64 and values of at most 512 characters.",
                param="metadata",
                code="invalid_value",
            )


def digest(request: JobRequest) -> str:
    body = request.model_dump(mode="json", exclude_unset=True, exclude={"dry_run"})
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
