"""The body of a chat completion: every option of the wire, taken, ignored or refused by name."""

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator

from app.generation_request import GenerationRequest, Unstored, is_text, refuse
from app.tables import JsonObject

# Cannot be done here, and an answer without it would not be the one that was asked for.
UNSUPPORTED = {
    "audio": "these models write text alone.",
    "functions": "functions are not called here; leave them out.",
    "moderation": "nothing is moderated here.",
    "web_search_options": "there is no web search here.",
}


def _as_text(value: object) -> str:
    """A text, or the texts of its parts put together, as training does. Raises ValueError."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("is a text, or a list of parts; it is not empty.")
    return "".join(_text_of(part) for part in value)


def _text_of(part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise ValueError('a part is an object with a "type".')
    if kind not in ("text", "refusal"):
        raise ValueError(f"parts of type '{kind[:40]}' cannot be read: these models know text alone.")
    if not is_text(part.get(kind)):
        raise ValueError(f"a part of type '{kind}' has its text under \"{kind}\".")
    return str(part[kind])


class Message(Unstored):
    """One turn of the conversation; a message that came as an answer can be sent back as it is."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: (
        Annotated[str, PlainValidator(_as_text, json_schema_input_type=str | list[dict[str, str]])] | None
    ) = Field(None, description="Text, or text parts; `developer` counts as `system`")
    name: str | None = Field(None, max_length=256)
    refusal: str | None = None
    tool_calls: list[JsonObject] | None = None
    tool_call_id: str | None = None
    function_call: JsonObject | None = None
    audio: JsonObject | None = None
    annotations: list[JsonObject] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Message":
        if self.audio is not None:
            raise ValueError("audio cannot be heard: these models know text alone.")
        if self.content is None and (
            self.role != "assistant" or not (self.tool_calls or self.function_call or self.refusal)
        ):
            raise ValueError("a message needs a content.")
        return self

    def plain(self) -> JsonObject:
        """As a row of a training file has it."""
        content = self.refusal if self.content is None else self.content
        rest = self.model_dump(include={"name", "tool_calls", "tool_call_id"}, exclude_none=True)
        return {"role": self.role, "content": content or "", **rest}


class ResponseFormat(Unstored):
    """`text`, or JSON: any object, or what the schema says, whatever the model's weights are."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonObject | None = Field(None, description="`name`, `schema`; `strict` or not, it is kept")

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type 'json_schema', and only with it.")
        unknown = set(self.json_schema or ()) - {"name", "description", "schema", "strict"}
        if unknown:
            raise ValueError(f"json_schema has no '{min(unknown)[:64]}'.")
        if self.json_schema is not None and not isinstance(self.json_schema.get("name"), str):
            raise ValueError("json_schema needs a name.")
        if not isinstance((self.json_schema or {}).get("schema") or {}, dict):
            raise ValueError("json_schema.schema is an object.")
        return self

    def schema_to_keep(self) -> JsonObject | None:
        if self.type == "text":
            return None
        return {"type": "object"} if self.json_schema is None else self.json_schema.get("schema") or {}


class ChatRequest(GenerationRequest):
    """The conversation so far, and how the next turn is to be written."""

    messages: list[Message] = Field(min_length=1, max_length=1024, description="The conversation so far")
    max_completion_tokens: int | None = Field(
        None, ge=1, description="Tokens to write at most; what the context has room for when absent"
    )
    max_tokens: int | None = Field(None, ge=1, description="The older name of max_completion_tokens")
    logprobs: bool = Field(False, description="Give each token with its log-probability")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="Name so many of each place's likeliest tokens; needs logprobs"
    )
    response_format: ResponseFormat = Field(
        ResponseFormat(type="text"), description="`json_object` or `json_schema`: valid JSON, always"
    )
    tools: list[JsonObject] | None = Field(None, description="Refused, but with tool_choice none")
    tool_choice: Any = Field(None, description="`none`, or `auto` without tools")
    parallel_tool_calls: bool | None = Field(None, description="Ignored")
    functions: list[JsonObject] | None = Field(None, description="Refused")
    function_call: Any = Field(None, description="`none` or `auto`")
    modalities: list[Literal["text", "audio"]] | None = Field(None, description="`text`; audio is refused")
    audio: JsonObject | None = Field(None, description="Refused")
    web_search_options: JsonObject | None = Field(None, description="Refused")
    moderation: JsonObject | None = Field(None, description="Refused")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Ignored: nothing is stored")
    store: bool | None = Field(None, description="Ignored: nothing is stored")
    service_tier: str | None = Field(None, max_length=64, description="Ignored")
    reasoning_effort: str | None = Field(None, max_length=64, description="Ignored")
    verbosity: str | None = Field(None, max_length=64, description="Ignored")
    prediction: JsonObject | None = Field(None, description="Ignored: it only saves time")
    safety_identifier: str | None = Field(None, max_length=512, description="Ignored")
    prompt_cache_key: str | None = Field(None, max_length=512, description="Ignored")
    prompt_cache_options: JsonObject | None = Field(None, description="Ignored")
    prompt_cache_retention: str | None = Field(None, max_length=64, description="Ignored")

    def check(self) -> None:
        """Raises InvalidRequest for what cannot be done and for options that contradict one another."""
        for param, why in UNSUPPORTED.items():
            if getattr(self, param):
                raise refuse(param, why, "unsupported_parameter")
        if "audio" in (self.modalities or ()):
            raise refuse("modalities", UNSUPPORTED["audio"], "unsupported_parameter")
        if self.tools and self.tool_choice != "none":
            raise refuse("tools", "no tools are called here; leave them out.", "unsupported_parameter")
        if self.tool_choice not in (None, "none", "auto"):
            raise refuse("tool_choice", "no tools are called here.", "unsupported_parameter")
        if self.function_call not in (None, "none", "auto"):
            raise refuse("function_call", "no functions are called here.", "unsupported_parameter")
        if self.top_logprobs is not None and not self.logprobs:
            raise refuse("top_logprobs", "needs logprobs to be true.")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise refuse("max_tokens", "is the older name of max_completion_tokens; give one of them.")

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
