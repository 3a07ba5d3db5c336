"""The form of an API key: `ft_<8 characters id>_<43 characters secret>_<6 characters checksum>`.

The id finds the row, the checksum lets secret scanners know a key without asking us. Nothing here needs a
database, so that logs can be cleaned of keys by whoever writes them. `python -m app.apikey` prints a new one,
for a first key that is to be known before the service is there.
"""

import hashlib
import re
import secrets
import string
import zlib

ALPHABET = string.digits + string.ascii_letters
KEY_FORM = re.compile(r"ft_([0-9A-Za-z]{8})_([0-9A-Za-z_-]{43})_([0-9A-Za-z]{6})")
TICKET_BEGINS = "ftd_"  # a download ticket: app/tickets.py
TICKET_FORM = re.compile(rf"{TICKET_BEGINS}[0-9A-Za-z_-]{{43}}")


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(6):
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits


def make_key() -> str:
    """A new key with 256 random bits."""
    body = f"ft_{''.join(secrets.choice(ALPHABET) for _ in range(8))}_{secrets.token_urlsafe(32)}"
    return f"{body}_{_checksum(body)}"


def parse_key(key: str) -> tuple[str, str] | None:
    """(id, secret) of a well-formed key whose checksum is right."""
    form = KEY_FORM.fullmatch(key)
    if form is None or form[3] != _checksum(key[: -len(form[3]) - 1]):
        return None
    return form[1], form[2]


def redacted(key_id: str) -> str:
    """How a key is shown once its secret is gone."""
    return f"ft_{key_id}_…"


def without_keys(text: str) -> str:
    """The text with the secret of every key, and every download ticket, in it taken out."""
    return TICKET_FORM.sub(f"{TICKET_BEGINS}…", KEY_FORM.sub(lambda form: redacted(form[1]), text))


def secret_sha256(secret: str) -> str:
    """256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


if __name__ == "__main__":
    print(make_key())
