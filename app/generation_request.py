"""What the bodies of completions and of chat completions have in common: how a text is to be written."""

from typing import Annotated

from pydantic import AfterValidator, Field, PlainValidator, field_validator

from app.body import Body
from app.errors import InvalidRequest

# Divided by less, logits leave what float32 holds; long before that the likeliest token is all there is.
COLDEST = 1e-6


def is_text(value: object) -> bool:
    """Raises ValueError for a string that is no text."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair, which is no text.") from error
    return True


def _not_too_cold(temperature: float) -> float:
    return temperature if temperature >= COLDEST else 0.0


def _as_stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > 4 or not all(is_text(each) and each for each in stops):
        raise ValueError("is one text, or a list of up to 4; none of them empty.")
    return stops


class Unstored(Body):
    """What is answered and forgotten: NUL is a character like any other, and models do write it."""

    stored = False


class StreamOptions(Unstored):
    """What a stream carries besides text."""

    include_usage: bool = Field(False, description="One more chunk at the end, with the usage")
    include_obfuscation: bool = Field(False, description="Ignored: nothing is padded here")


class GenerationRequest(Unstored):
    """OpenAI's options with OpenAI's ranges and defaults, and our top_k, min_p and repetition_penalty."""

    model: str = Field(min_length=1, max_length=256, pattern=r"^[^\x00]*$", description="Any model's name")
    temperature: Annotated[float, AfterValidator(_not_too_cold)] = Field(
        1.0, ge=0, le=2, description="0 always takes the likeliest token"
    )
    top_p: float = Field(
        1.0, ge=0, le=1, description="Draw from the likeliest tokens of this total probability"
    )
    n: int = Field(1, ge=1, le=128, description="Choices for each prompt")
    stop: Annotated[list[str], PlainValidator(_as_stops, json_schema_input_type=str | list[str])] = Field(
        [], description="Up to 4 texts that end the completion and are not shown"
    )
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
        1.0, ge=0.01, le=10, description="Above 1: tokens of prompt and completion become less likely"
    )

    @field_validator("logit_bias")
    @classmethod
    def _name_ids(cls, value: dict[str, float]) -> dict[str, float]:
        if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value):
            raise ValueError("its keys are token ids, as texts.")
        return value

    def biases(self) -> dict[int, float]:
        """`logit_bias` by token id."""
        return {int(token): bias for token, bias in self.logit_bias.items()}


def refuse(param: str, message: str, code: str = "invalid_value") -> InvalidRequest:
    return InvalidRequest(f"{param}: {message}", param=param, code=code)
