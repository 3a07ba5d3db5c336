"""What can be said of a file: for each finding what it means and what to do about it."""

from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["info", "warn", "error"]
LINES = 10  # first lines told
VERSION = 1  # of a report that is kept; raise it when what is found changes


@dataclass(frozen=True)
class Kind:
    """A finding that can be made. `error`: the result is likely to be of no use as it is."""

    level: Level
    meaning: str
    action: str


KINDS: dict[str, Kind] = {
    "bad_rows": Kind(
        "error",
        "Rows that cannot be read; the file has status `error` and no job takes it.",
        "See `problems` of the file, mend the rows and upload it again.",
    ),
    "few_rows": Kind(
        "warn",
        "So few rows that the model learns them by heart, or nothing.",
        "Bring at least some dozen; hundreds for a task, thousands for a style.",
    ),
    "duplicate_rows": Kind(
        "warn",
        "Rows that say the same as an earlier one, white space apart: they are learned that many times.",
        "Remove them, unless the repetition is meant.",
    ),
    "leaked_rows": Kind(
        "error",
        "Rows of the validation file that are in the training file too: the model has seen the answers, and"
        " validation loss looks better than it is. Lines are those of the validation file.",
        "Remove them from one of the two files.",
    ),
    "contradictory_answers": Kind(
        "info",
        "Rows that ask the same as an earlier one and answer otherwise.",
        "Fine where answers may vary; where one is right, keep that one.",
    ),
    "empty_answers": Kind(
        "warn",
        "Rows whose answer or text is blank: nothing is learned from them.",
        "Remove them, or fill in what is missing.",
    ),
    "short_answers": Kind(
        "info",
        "Answers of one or two characters.",
        "Right for labels and yes or no; otherwise look whether something was cut off.",
    ),
    "unanswered_messages": Kind(
        "warn",
        "Conversations that go on after the last message of the assistant: what follows is not used.",
        "End each conversation with an answer.",
    ),
    "control_characters": Kind(
        "warn",
        "Characters that are no text, such as those of a terminal or of a binary file.",
        "Remove them: the model learns to write them.",
    ),
    "broken_characters": Kind(
        "warn",
        "The replacement character, or letters as they look when UTF-8 is read as Windows-1252.",
        "Convert the source once more with the right encoding.",
    ),
    "blobs": Kind(
        "warn",
        "Unbroken runs of 400 letters and digits or more: base64, hexadecimal, minified code.",
        "Remove them: they cost many tokens and teach noise.",
    ),
    "private_keys": Kind(
        "error",
        "Private keys. A model can be made to repeat what it was trained on.",
        "Remove them, and replace the keys wherever they are in use.",
    ),
    "access_tokens": Kind(
        "error",
        "What looks like passwords of services: keys and tokens with a known beginning.",
        "Remove them, and revoke them where they were issued.",
    ),
    "payment_cards": Kind(
        "error",
        "Numbers of payment cards: right length, beginning and check digit.",
        "Remove or replace them.",
    ),
    "bank_accounts": Kind(
        "warn",
        "International bank account numbers with the right check digits.",
        "Remove or replace them.",
    ),
    "email_addresses": Kind(
        "warn",
        "E-mail addresses, those of example domains apart.",
        "Replace them, unless they are public or you may use them.",
    ),
    "phone_numbers": Kind(
        "info",
        "What looks like telephone numbers, international or North American.",
        "Replace them, unless they are public or you may use them.",
    ),
    "special_tokens": Kind(
        "warn",
        "Text that the model's tokenizer reads as one of its control tokens, such as the end of a text.",
        "Remove it, unless it is meant: the model learns to end there.",
    ),
    "too_long_rows": Kind(
        "info",
        "Rows longer than max_length; `excess_length` says what is done with them.",
        "Shorten them, raise max_length, or see in a preview whether the cut is where you want it.",
    ),
    "lost_answers": Kind(
        "warn",
        "Rows of whose answer nothing is left after the cut at max_length: they are not trained on.",
        "Shorten the prompts or raise max_length.",
    ),
}


@dataclass
class Finding:
    """How often, and in which lines first."""

    count: int = 0
    lines: list[int] = field(default_factory=list)
    last: int = 0

    def add(self, line: int) -> None:
        """A line counts once; its findings of one kind come one after the other."""
        if line == self.last:
            return
        self.count, self.last = self.count + 1, line
        if len(self.lines) < LINES:
            self.lines.append(line)


class Findings:
    """What was found so far; a row counts once for each kind."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}

    def add(self, code: str, line: int) -> None:
        assert code in KINDS  # noqa: S101  the page of findings is made of KINDS
        self._found.setdefault(code, Finding()).add(line)

    def as_json(self, scale: dict[str, int]) -> list[dict[str, Any]]:
        """The worst first. `scale`: kinds of which only one in so many was looked for."""
        order = list(KINDS)
        worst = ("error", "warn", "info")
        codes = sorted(self._found, key=lambda code: (worst.index(KINDS[code].level), order.index(code)))
        return [
            {
                "code": code,
                "level": KINDS[code].level,
                "count": self._found[code].count * scale.get(code, 1),
                "estimated": scale.get(code, 1) > 1,
                "lines": self._found[code].lines,
                "meaning": KINDS[code].meaning,
                "action": KINDS[code].action,
            }
            for code in codes
        ]
