"""`finetuned chat`: a conversation with a model, turn by turn."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.generate import (
    Frequency,
    MaxTokens,
    MinP,
    Model,
    Presence,
    Repetition,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    chunks,
    write,
)
from app.terminal.outcome import Failure, Refused

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

COMMANDS = """\
/reset          forget the conversation, but not the system message
/system TEXT    set the system message, or without a text remove it
/help           this list
Ctrl-C stops an answer, Ctrl-D leaves."""


@connected
def chat(
    api: "Api",
    model: Model,
    system: Annotated[str | None, typer.Option(help="A system message before everything")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: Repetition = None,
    presence_penalty: Presence = None,
    frequency_penalty: Frequency = None,
    seed: Seed = None,
    stop: Stop = None,
) -> None:
    """Talk with a model; /help lists what else can be typed."""
    options = {
        "model": ids.model(api, model),
        "max_completion_tokens": max_tokens,
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
    Talk(api, {name: value for name, value in options.items() if value is not None}, system).run()


class Talk:
    """A conversation. It is kept nowhere."""

    def __init__(self, api: "Api", options: "JsonObject", system: str | None) -> None:
        self._api, self._options, self._system = api, options, system
        self._said: list[JsonObject] = []
        self._prompt = "> " if sys.stdin.isatty() else ""

    def run(self) -> None:
        """Until Ctrl-D, or the end of the input."""
        if self._prompt:
            import readline  # noqa: F401  # arrows and history for `input`

            screen.note(f"{self._options['model']}; /help lists what can be typed, Ctrl-D leaves.")
        while True:
            try:
                if not self._turn():
                    return
            except KeyboardInterrupt:  # whenever it comes, a slip of the finger does not end a conversation
                if not self._prompt:
                    raise
                screen.note("\nCtrl-D leaves.")

    def _turn(self) -> bool:
        """Whether the conversation goes on."""
        try:
            line = input(self._prompt)
        except EOFError:
            if self._prompt:
                write("\n")
            return False
        if line.startswith("/"):
            self._obey(line)
        elif line.strip():
            self._answer(line)
        return True

    def _obey(self, line: str) -> None:
        command, _, text = line.partition(" ")
        if command == "/reset":
            self._said = []
            screen.note("The conversation begins anew.")
        elif command == "/system":
            self._system = text.strip() or None
            screen.note("The system message is set." if self._system else "There is no system message now.")
        elif command == "/help":
            screen.note(COMMANDS)
        else:
            screen.note(f"There is no {command}.\n{COMMANDS}")

    def _answer(self, line: str) -> None:
        """What was stopped by Ctrl-C stays as far as it got; what was refused was never said."""
        self._said.append({"role": "user", "content": line})
        before = [{"role": "system", "content": self._system}] if self._system else []
        answer = ""
        try:
            body = {**self._options, "messages": [*before, *self._said]}
            for chunk in chunks(self._api, "/v1/chat/completions", body):
                for choice in chunk["choices"]:
                    text = choice["delta"].get("content") or ""
                    answer += text
                    write(text)
            write("\n")
        except KeyboardInterrupt:
            if not self._prompt:
                raise
            screen.note(" [stopped]")
        except Failure as failure:
            self._said.pop()
            if not self._prompt:
                raise
            write("\n" if answer else "")
            screen.complain(failure.sentence)
            if isinstance(failure, Refused) and failure.error_code == "context_length_exceeded":
                screen.note("The conversation has become too long for the model: /reset begins anew.")
            return
        self._said.append({"role": "assistant", "content": answer})
