"""Completions: what any known model writes after a prompt, at once or as it is written."""

from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, PlainValidator

from app import catalogue
from app.access import needs
from app.audit import changes_nothing
from app.auth import KnownCaller
from app.catalogue import Source
from app.chunks import TextChunks
from app.completion import StreamedCompletion, WholeCompletion
from app.database import run
from app.dependencies import CurrentSettings, OpenGenerator, OpenSession, OpenUpstreams
from app.generation_request import GenerationRequest, is_text, refuse
from app.generator import Generation

router = APIRouter(prefix="/completions", tags=["completions"], dependencies=[needs("generate")])

MAX_CHOICES = 2048  # prompts times candidates of one request
# Options of the wire that the generator does not see, or sees in another form.
NOT_PASSED = {
    "model",
    "prompt",
    "best_of",
    "max_tokens",
    "logit_bias",
    "suffix",
    "user",
    "stream_options",
}


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int for each in value)


def _as_prompts(value: object) -> list[str | list[int]]:
    """One prompt is a list of one. Raises ValueError."""
    if is_text(value) or (value and _is_ids(value)):
        return [value]  # type: ignore[list-item]  # the two lines above say so
    if isinstance(value, list) and value and (all(map(is_text, value)) or all(map(_is_ids, value))):
        return value
    raise ValueError(
        "is a text, a list of texts, a list of token ids, or a list of such lists; none is empty."
    )


class CompletionRequest(GenerationRequest):
    """A text, and how it is to go on."""

    prompt: Annotated[
        list[str | list[int]],
        PlainValidator(_as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ] = Field([""], description="Text, texts, token ids or lists of them; absent: a new document")
    max_tokens: int | None = Field(None, ge=0, description="Tokens to write at most; 16 when absent")
    best_of: int = Field(0, ge=0, le=20, description="Candidates, of which the `n` likeliest are given")
    logprobs: int | None = Field(
        None, ge=0, le=5, description="Name so many of each place's likeliest tokens"
    )
    echo: bool = Field(False, description="Give the prompt back before the completion")
    suffix: str | None = Field(None, description="Not supported: these models only write on")


def _generation(body: CompletionRequest, source: Source) -> Generation:
    """Raises InvalidRequest where options contradict one another."""
    if body.suffix:
        raise refuse("suffix", "inserting before a suffix is not supported.", "unsupported_parameter")
    best_of = body.best_of or body.n
    if best_of < body.n:
        raise refuse("best_of", f"{best_of} candidates are too few to give n={body.n} of them.")
    if body.stream and best_of > body.n:
        raise refuse("best_of", "the best can be known only at the end; stream with best_of equal to n.")
    if len(body.prompt) * best_of > MAX_CHOICES:
        raise refuse("prompt", f"prompts times choices are limited to {MAX_CHOICES} a request.")
    options = body.model_dump(exclude=NOT_PASSED)
    return Generation(
        **options,
        source=source.source,
        name=source.name,
        base=source.trained_from,
        seal=source.seal,
        prompts=body.prompt,
        best_of=best_of,
        max_tokens=16 if body.max_tokens is None else body.max_tokens,
        fit=body.max_tokens is None,
        logit_bias=body.biases(),
    )


@router.post("", response_class=JSONResponse)
@changes_nothing
async def create_completion(
    body: CompletionRequest,
    session: OpenSession,
    settings: CurrentSettings,
    generator: OpenGenerator,
    upstreams: OpenUpstreams,
    caller: KnownCaller,
    request: Request,
) -> Response:
    """What the model writes after each prompt.

        client.completions.create(
            model=job.fine_tuned_model, prompt="Stir the", max_tokens=40, stop="\\n", seed=1
        )

    A text or token ids, one or several; `n` choices for each, numbered prompt by prompt. The same seed gives
    the same text, whatever else the generator is writing. A prompt that does not fit the model's context
    together with `max_tokens` is refused (400 `context_length_exceeded`) with the numbers.
    """
    source = await run(session, catalogue.find, body.model, caller.owner, settings)
    if body.model in upstreams:
        return upstreams.answer(body.model, "completions", await request.json())
    lines = generator.lines(_generation(body, source))
    chunks = TextChunks(source)
    if body.stream:
        return StreamedCompletion(chunks, lines, body.stream_options.include_usage)
    return WholeCompletion(chunks, lines)
