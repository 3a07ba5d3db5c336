"""How a command ends: what its exit code means, and the one sentence where it fails."""

from enum import IntEnum


class Exit(IntEnum):
    """What a script can tell from the exit code; docs/cli.md lists them."""

    OK = 0
    FAILED = 1  # refused by the service, or impossible here
    USAGE = 2  # the command line itself is wrong; Typer's own code for it
    UNREACHABLE = 3  # nothing answers, or something else than this service
    JOB_FAILED = 4
    JOB_CANCELLED = 5
    JOB_PAUSED = 6
    INTERRUPTED = 130


class Failure(Exception):
    """Ends the command with one sentence that says what to do."""

    def __init__(self, sentence: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(sentence)
        self.sentence, self.code = sentence, code


class Refused(Failure):
    """The service said no: `param` and `error_code` are those of OpenAI's error body."""

    def __init__(self, sentence: str, status: int, param: str | None = None, code: str | None = None) -> None:
        super().__init__(sentence)
        self.status, self.param, self.error_code = status, param, code


class Unreachable(Failure):
    """Nobody answered."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, Exit.UNREACHABLE)


def usage(sentence: str) -> Failure:
    """The command line asks for something that cannot be meant."""
    return Failure(sentence, Exit.USAGE)
