"""What a text should not hold: secrets, personal data, what is no text. Contents are never kept or told."""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

BLOCK_CHARACTERS = 64_000
EXAMPLE_DOMAINS = re.compile(r"(?:.*\.)?(?:example\.(?:com|org|net)|test|invalid|localhost)", re.IGNORECASE)
TOKENS = (
    r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])",  # Amazon
    r"gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60}",
    r"glpat-[\w-]{20}",
    r"xox[abeprs]-[\w-]{20}",  # Slack
    r"[sr]k_live_[A-Za-z0-9]{20}",  # Stripe
    r"sk-[A-Za-z0-9_-]{32}",  # OpenAI, Anthropic
    r"AIza[\w-]{35}",  # Google
    r"hf_[A-Za-z0-9]{30}",
    r"npm_[A-Za-z0-9]{36}|pypi-[\w-]{50}",
    r"eyJ[\w-]{16,}\.eyJ[\w-]{16,}\.[\w-]{16}",  # a signed web token
)
TOKEN_MARKS = (
    "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "k_live_", "sk-",
    "AIza", "hf_", "npm_", "pypi-", "eyJ",
)  # fmt: skip
# Umlauts, accents, quotation marks and a hard space in UTF-8, read as Windows-1252.
MOJIBAKE = ("Ã¤", "Ã¶", "Ã¼", "ÃŸ", "Ã©", "Ã¨", "Ã¡", "Ã³", "Ã±", "â€™", "â€œ", "â€“", "â€¦", "Â\xa0", "ï»¿")


def _is_card(digits: str) -> bool:
    """Luhn's check digit, over a length that cards have."""
    numbers = [int(c) for c in digits if c.isdigit()]
    if not 13 <= len(numbers) <= 19 or len(set(numbers)) == 1:
        return False
    doubled = [sum(divmod(2 * number, 10)) for number in numbers[-2::-2]]
    return (sum(numbers[-1::-2]) + sum(doubled)) % 10 == 0


def _is_account(text: str) -> bool:
    """ISO 13616: the country and check digits moved to the end, letters as numbers, remainder 1 by 97."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _has(*marks: str) -> Callable[[str], bool]:
    """Whether one of the marks occurs."""
    return lambda text: any(mark in text for mark in marks)


def _is_unbroken(text: str) -> bool:
    """Whether there is no space for long enough: a run of 400 covers one of every second 200 letters."""
    return any(" " not in text[at : at + 200] for at in range(0, len(text), 200))


@dataclass(frozen=True)
class Pattern:
    """`may`: whether it can occur at all, found out fast.

    A form begins with what few letters are, and only then looks at what stands before it (`(?<!….)`): the
    engine then skips all other letters in C, several times as fast as it would look around at each.
    """

    code: str
    form: re.Pattern[str]
    may: Callable[[str], bool] = lambda _: True
    is_real: Callable[[str], bool] = lambda _: True

    def find(self, text: str) -> Iterator[int]:
        """Where it occurs."""
        if not self.may(text):
            return
        for match in self.form.finditer(text):
            if self.is_real(match[0]):
                yield match.start()


PATTERNS = (
    Pattern(
        "private_keys",
        re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"),
        _has("PRIVATE KEY"),
    ),
    Pattern("access_tokens", re.compile(rf"(?<![A-Za-z0-9_-])(?:{'|'.join(TOKENS)})"), _has(*TOKEN_MARKS)),
    Pattern(
        "payment_cards",
        re.compile(
            r"[3-6](?<![\w.-].)\d{3}[ -]?\d{4}[ -]?\d{2,4}[ -]?\d{2,4}(?:[ -]?\d{1,3})?(?![\w-]|\.\d)"
        ),
        is_real=_is_card,
    ),
    Pattern(
        "bank_accounts",
        re.compile(r"[A-Z](?<!\w.)[A-Z]\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"),
        is_real=_is_account,
    ),
    Pattern(
        "email_addresses",
        re.compile(r"@(?<=[A-Za-z0-9_%+-].)(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"),
        _has("@"),
        lambda found: EXAMPLE_DOMAINS.fullmatch(found[1:]) is None,
    ),
    Pattern(
        "phone_numbers",  # international
        re.compile(r"\+(?<![\w+].)[1-9]\d{0,2}[ .(-]{0,2}\d(?:[ .()-]{0,2}\d){6,12}(?!\d)"),
        _has("+"),
    ),
    Pattern("phone_numbers", re.compile(r"\([2-9]\d\d\) ?[2-9]\d\d[.-]\d{4}(?![\w-])"), _has("(")),
    Pattern(
        "phone_numbers", re.compile(r"[2-9](?<![\w.-].)\d\d[.-][2-9]\d\d[.-]\d{4}(?![\w-])"), _has("-", ".")
    ),
    Pattern("control_characters", re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")),
    Pattern(
        "broken_characters",
        re.compile("|".join(("\ufffd", *MOJIBAKE))),
        lambda text: not text.isascii(),
    ),
    Pattern("blobs", re.compile(r"(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/=_-]{400}"), _is_unbroken),
)


def scan(text: str) -> Iterator[tuple[str, int]]:
    """Codes, and where in the text."""
    for pattern in PATTERNS:
        for at in pattern.find(text):
            yield pattern.code, at


class Rows:
    """Rows put together before they are looked through: most hold nothing, and a few large texts are looked
    through several times as fast as many small ones."""

    def __init__(self, special: Sequence[str]) -> None:
        self._special = special
        self._texts, self._lines, self._starts, self._size = list[str](), list[int](), list[int](), 0

    def add(self, line: int, text: str) -> None:
        self._texts.append(text)
        self._lines.append(line)
        self._starts.append(self._size)
        self._size += len(text) + 1

    @property
    def is_full(self) -> bool:
        return self._size > BLOCK_CHARACTERS

    def take(self, within: bool) -> Iterator[tuple[str, int]]:
        """Codes and lines of what was added since. `within`: the texts' own lines are those of the file."""
        whole = "\n".join(self._texts)
        for code, at in (*scan(whole), *self._tokens(whole)):
            row = bisect_right(self._starts, at) - 1
            more = whole.count("\n", self._starts[row], at) if within else 0
            yield code, self._lines[row] + more
        self._texts, self._lines, self._starts, self._size = [], [], [], 0

    def _tokens(self, whole: str) -> Iterator[tuple[str, int]]:
        for token in self._special:
            at = -1
            while (at := whole.find(token, at + 1)) >= 0:
                yield "special_tokens", at
