"""`finetuned generate`: what a model writes, as it writes it."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson
from app.terminal.outcome import Failure, usage

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

SAMPLING = "Sampling"
MOST_TOKENS = 128  # half of what the built-in model's context holds: the other half is for the prompt
Model = Annotated[
    str,
    typer.Argument(
        help="Any model's or checkpoint's name, a job, or `last`", autocompletion=ids.complete_model
    ),
]


def _knob(help_text: str) -> Any:
    return typer.Option(help=help_text, rich_help_panel=SAMPLING)


MaxTokens = Annotated[int | None, _knob("Tokens to write at most")]
Temperature = Annotated[float | None, _knob("0 always takes the likeliest token")]
TopP = Annotated[float | None, _knob("Draw from the likeliest tokens of this total probability")]
TopK = Annotated[int | None, _knob("Draw from the k likeliest tokens")]
MinP = Annotated[float | None, _knob("Leave out tokens below this share of the likeliest one's")]
Repetition = Annotated[float | None, _knob("Above 1: tokens that were written become less likely")]
Presence = Annotated[float | None, _knob("Taken from each token written before")]
Frequency = Annotated[float | None, _knob("The same for every time it was written")]
Seed = Annotated[int | None, _knob("Same seed, same request, same text")]
Stop = Annotated[list[str] | None, _knob("A text that ends it and is not shown; may be repeated")]


@connected
def generate(
    api: "Api",
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="What it is to go on from; `-` or nothing reads the standard input")
    ] = None,
    max_tokens: MaxTokens = MOST_TOKENS,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: Repetition = None,
    presence_penalty: Presence = None,
    frequency_penalty: Frequency = None,
    seed: Seed = None,
    stop: Stop = None,
    as_json: AsJson = False,
) -> None:
    """Write on from a prompt, streamed as it is written."""
    if prompt in (None, "-"):
        if prompt is None and sys.stdin.isatty():
            raise usage(
                'Name a prompt: finetuned generate MODEL "Title:", or send one to the standard input.'
            )
        prompt = sys.stdin.read()
    body = {
        "model": ids.model(api, model),
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
        "stop": stop,
    }
    body = {name: value for name, value in body.items() if value is not None}
    if as_json:
        screen.show_json(api.post("/v1/completions", body, repeatable=True))
        return
    for chunk in chunks(api, "/v1/completions", body):
        for choice in chunk["choices"]:
            write(choice["text"])
    write("\n")


def write(text: str) -> None:
    """As it is into a pipe; a terminal gets nothing that it would obey."""
    sys.stdout.write(screen.plain(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def chunks(api: "Api", where: str, body: "JsonObject") -> "Iterator[JsonObject]":
    """The parts of a streamed answer. Raises Refused, Unreachable, Failure where it breaks off."""
    import httpx2

    ended = False
    try:
        with api.stream("POST", where, patient=True, json={**body, "stream": True}) as response:
            for line in response.iter_lines():
                name, _, value = line.partition(":")
                value = value.strip()
                if name != "data" or not value:
                    continue
                if value == "[DONE]":
                    ended = True
                    break
                chunk = json.loads(value)
                if "error" in chunk:
                    raise Failure(f"The answer broke off: {chunk['error']['message']}")
                yield chunk
    except httpx2.TransportError as error:
        raise api.lost(error) from None
    if not ended:
        raise Failure("The answer broke off before its end: ask again.")
