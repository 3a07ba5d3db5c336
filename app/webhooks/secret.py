"""Secrets that sign deliveries, by the rules of Standard Webhooks (https://www.standardwebhooks.com).

A secret is an HMAC of the endpoint's id and a random salt, under a key that lies in the home folder and
nowhere else. So it can be had again at each delivery, and yet no dump of the database holds one.

Signed here with `hmac`: it is three lines, and the package `standardwebhooks` takes text for bytes and reads
a timestamp's zone as UTC whatever it is.
"""

import base64
import hashlib
import hmac
import os
import secrets
from pathlib import Path

PREFIX = "whsec_"


def read_key(home: Path) -> bytes:
    """The key of all secrets, from `home/webhook_key` (mode 0600); the first who asks makes it.

    Raises OSError. Whoever loses the file rotates the secret of each endpoint.
    """
    path = home / "webhook_key"
    if not path.exists():
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".webhook_key-{secrets.token_hex(4)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            # Unlike a rename, a link never replaces the key of another process that was quicker.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return bytes.fromhex(path.read_text().strip())


def new_salt() -> str:
    return secrets.token_hex(16)


def derive(key: bytes, endpoint_id: str, salt: str) -> str:
    """The secret `whsec_<base64 of 32 bytes>` that belongs to a salt."""
    digest = hmac.digest(key, f"{endpoint_id}.{salt}".encode(), hashlib.sha256)
    return PREFIX + base64.b64encode(digest).decode()


def hint(secret: str) -> str:
    """What may be shown of a secret, so that two can be told apart."""
    return f"{PREFIX}...{secret.rstrip('=')[-4:]}"


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,<signature>` of exactly these bytes, sent at `timestamp` (whole seconds)."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signature = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(signature).decode()}"
