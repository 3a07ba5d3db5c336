"""Completions: what any known model writes after a prompt, at once or as it is written."""

from typing import Annotated

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import Field, PlainValidator, field_validator

from app import catalogue
from app.access import needs
from app.audit import changes_nothing
from app.auth import KnownCaller
from app.body import Body
from app.catalogue import Source
from app.completion import StreamedCompletion, WholeCompletion
from app.database import run
from app.dependencies import CurrentSettings, OpenGenerator, OpenSession
from app.errors import InvalidRequest
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


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair, which is no text.") from error
    return True


def _as_prompts(value: object) -> list[str | list[int]]:
    """One prompt is a list of one. Raises ValueError."""
    if _is_text(value) or (value and _is_ids(value)):
        return [value]  # type: ignore[list-item]  # the two lines above say so
    if isinstance(value, list) and value and (all(map(_is_text, value)) or all(map(_is_ids, value))):
        return value
    raise ValueError(
        "is a text, a list of texts, a list of token ids, or a list of such lists; none is empty."
    )


def _as_stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(_is_text(each) and each for each in stops):
        raise ValueError("is one text, or a list of up to 4; none of them empty.")
    return stops


class StreamOptions(Body):
    """What a stream carries besides text."""

    include_usage: bool = Field(False, description="One more chunk at the end, with the usage")
    include_obfuscation: bool = Field(False, description="Ignored: nothing is padded here")


class CompletionRequest(Body):
    """OpenAI's options with OpenAI's ranges and defaults, and our top_k, min_p and repetition_penalty."""

    model: str = Field(min_length=1, max_length=256, pattern=r"^[^\x00]*$", description="Any model's name")
    prompt: Annotated[
        list[str | list[int]],
        PlainValidator(_as_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ] = Field([""], description="Text, texts, token ids or lists of them; absent: a new document")
    max_tokens: int | None = Field(None, ge=0, description="Tokens to write at most; 16 when absent")
    temperature: float = Field(1.0, ge=0, le=2, description="0 always takes the likeliest token")
    top_p: float = Field(
        1.0, ge=0, le=1, description="Draw from the likeliest tokens of this total probability"
    )
    n: int = Field(1, ge=1, le=128, description="Choices for each prompt")
    best_of: int = Field(0, ge=0, le=20, description="Candidates, of which the `n` likeliest are given")
    logprobs: int | None = Field(
        None, ge=0, le=5, description="Name so many of each place's likeliest tokens"
    )
    echo: bool = Field(False, description="Give the prompt back before the completion")
    stop: Annotated[list[str], PlainValidator(_as_stops, json_schema_input_type=str | list[str])] = Field(
        [], description="Up to 4 texts that end the completion and are not shown"
    )
    suffix: str | None = Field(None, description="Not supported: these models only write on")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Same seed, same request, same text")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="Taken from each token written before")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="The same for every time it was written")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, max_length=1024, description="Added to the logits of these token ids"
    )
    user: str | None = Field(None, description="Ignored")
    stream: bool = Field(False, description="Send the text as it is written, as server-sent events")
    stream_options: StreamOptions = StreamOptions()
    top_k: int = Field(0, ge=0, le=2**31 - 1, description="Draw from the k likeliest tokens; 0 is all")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Leave out tokens below this share of the likeliest one's"
    )
    repetition_penalty: float = Field(
        1.0, gt=0, le=10, description="Above 1: tokens of prompt and completion become less likely"
    )

    @field_validator("logit_bias")
    @classmethod
    def _name_ids(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value):
            raise ValueError("its keys are token ids, as texts.")
        return value


def _refuse(param: str, message: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"{param}: {message}", param=param, code=code)


def _generation(body: CompletionRequest, source: Source) -> Generation:
    """Raises InvalidRequest where options contradict one another."""
    if body.suffix:
        raise _refuse("suffix", "inserting before a suffix is not supported.", "unsupported_parameter")
    best_of = body.best_of or body.n
    if best_of < body.n:
        raise _refuse("best_of", f"{best_of} candidates are too few to give n={body.n} of them.")
    if body.stream and best_of > body.n:
        raise _refuse("best_of", "the best can be known only at the end; stream with best_of equal to n.")
    if len(body.prompt) * best_of > MAX_CHOICES:
        raise _refuse("prompt", f"prompts times choices are limited to {MAX_CHOICES} a request.")
    options = body.model_dump(exclude=NOT_PASSED)
    return Generation(
        **options,
        source=source.source,
        name=source.name,
        prompts=body.prompt,
        best_of=best_of,
        max_tokens=16 if body.max_tokens is None else body.max_tokens,
        fit=body.max_tokens is None,
        logit_bias={int(token): bias for token, bias in body.logit_bias.items()},
    )


@router.post("", response_class=JSONResponse)
@changes_nothing
async def create_completion(
    body: CompletionRequest,
    session: OpenSession,
    settings: CurrentSettings,
    generator: OpenGenerator,
    caller: KnownCaller,
) -> Response:
    """What the model writes after each prompt."""
    source = await run(session, catalogue.find, body.model, caller.owner, settings)
    lines = generator.lines(_generation(body, source))
    if body.stream:
        return StreamedCompletion(body.model, lines, body.stream_options.include_usage)
    return WholeCompletion(body.model, lines)
