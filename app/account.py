"""Who we are to a bucket's service, and what is told when it refuses us."""

import configparser
import re

from app.settings import Settings
from app.storage import StoreRefused

CODE = re.compile(r"<Code>(\w+)</Code>")
REFUSALS = {
    "NoSuchBucket": "FINETUNED_STORE: there is no bucket {bucket!r} at {where}; make it, or name another.",
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"),
        "FINETUNED_STORE_KEY_ID and FINETUNED_STORE_SECRET (or FINETUNED_STORE_CREDENTIALS): {where} refuses"
        " them ({code}).",
    ),
    "AccessDenied": "FINETUNED_STORE_KEY_ID: {where} does not let this key read, list, write and delete in"
    " the bucket {bucket!r} ({code}).",
    **dict.fromkeys(
        ("AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"),
        "FINETUNED_STORE_REGION or FINETUNED_STORE_ENDPOINT: the bucket {bucket!r} is not there ({code}).",
    ),
    "RequestTimeTooSkewed": "FINETUNED_STORE: {where} refuses requests since its clock and this machine's"
    " differ by minutes ({code}).",
}


def code_of(error: Exception) -> str | None:
    match = CODE.search(str(error))
    return None if match is None else match[1]


def credentials(settings: Settings) -> dict[str, str]:
    """What was given; nothing where the machine's own role is to be asked. Raises StoreRefused."""
    if settings.store_key_id is not None and settings.store_secret is not None:
        return {
            "access_key_id": settings.store_key_id.get_secret_value(),
            "secret_access_key": settings.store_secret.get_secret_value(),
        }
    if settings.store_credentials is None:
        return {}
    file = configparser.ConfigParser(interpolation=None)
    try:
        file.read_string(settings.store_credentials.read_text(encoding="utf-8"))
        given = {name.removeprefix("aws_"): value for name, value in file["default"].items()}
        kept = {name: given[name] for name in ("access_key_id", "secret_access_key")}
    except (OSError, configparser.Error, KeyError, UnicodeError) as error:
        raise StoreRefused(
            f"FINETUNED_STORE_CREDENTIALS: {settings.store_credentials} does not have a [default] with"
            f" aws_access_key_id and aws_secret_access_key ({type(error).__name__})."
        ) from None
    return {**kept, **({"session_token": given["session_token"]} if "session_token" in given else {})}


def refusal(settings: Settings, code: str) -> StoreRefused:
    """In a sentence that names the setting at fault."""
    where = settings.store_endpoint or "Amazon S3"
    bucket = (settings.store or "").removeprefix("s3://").partition("/")[0]
    return StoreRefused(REFUSALS[code].format(bucket=bucket, where=where, code=code))
