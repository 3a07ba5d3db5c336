"""Chat completions: what any known model answers in a conversation, at once or as it is written."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app import catalogue
from app.access import needs
from app.audit import changes_nothing
from app.auth import KnownCaller
from app.catalogue import Source
from app.chat_request import ChatRequest
from app.chunks import ChatChunks
from app.completion import StreamedCompletion, WholeCompletion
from app.database import run
from app.dependencies import CurrentSettings, OpenGenerator, OpenSession, OpenUpstreams
from app.generator import Generation

router = APIRouter(prefix="/chat/completions", tags=["chat"], dependencies=[needs("generate")])

# No context is longer, so that "as far as there is room" needs no word of its own.
ENDLESS = 2**31 - 1
PASSED = {
    "n", "stream", "stop", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed",
}  # fmt: skip


def _generation(body: ChatRequest, source: Source) -> Generation:
    return Generation(
        **body.model_dump(include=PASSED),
        source=source.source,
        name=source.name,
        base=source.trained_from,
        seal=source.seal,
        messages=[message.plain() for message in body.messages],
        json_schema=body.response_format.schema_to_keep(),
        best_of=body.n,
        max_tokens=body.limit or ENDLESS,
        fit=body.limit is None,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        logit_bias=body.biases(),
    )


@router.post("", response_class=JSONResponse)
@changes_nothing
async def create_chat_completion(
    body: ChatRequest,
    session: OpenSession,
    settings: CurrentSettings,
    generator: OpenGenerator,
    upstreams: OpenUpstreams,
    caller: KnownCaller,
    request: Request,
) -> Response:
    """The next turn of the assistant.

    The conversation is written by the model's own chat template, or by the documented default one: exactly
    as in training. The answer ends with the turn: at the end token, and where the next turn would begin.

        client.chat.completions.create(
            model=job.fine_tuned_model,
            messages=[{"role": "user", "content": "How long does rice take?"}],
            max_completion_tokens=100,
            temperature=0,
        )

    With `response_format` the answer is valid JSON whatever the model is, also where the tokens run out
    (`finish_reason` is then `length`); docs/serving.md says which keywords a schema may have.
    """
    source = await run(session, catalogue.find, body.model, caller.owner, settings)
    if body.model in upstreams:
        return upstreams.answer(body.model, "chat/completions", await request.json())
    body.check()
    lines = generator.lines(_generation(body, source))
    chunks = ChatChunks(source, body.n)
    if body.stream:
        return StreamedCompletion(chunks, lines, body.stream_options.include_usage)
    return WholeCompletion(chunks, lines)
