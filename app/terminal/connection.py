"""Which service a command talks to, and with whose key.

A key never stands in an argument list, which everybody on the machine can read.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from app.terminal.outcome import Exit, Failure, usage

if TYPE_CHECKING:
    from app.settings import Settings
    from app.terminal.client import Api

P = ParamSpec("P")
PANEL = "Connection"
Url = Annotated[
    str | None,
    typer.Option(help="Address of the service [$FINETUNED_URL, else the home's]", rich_help_panel=PANEL),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        help="File that holds the API key [$FINETUNED_API_KEY, else the home's]", rich_help_panel=PANEL
    ),
]
Home = Annotated[
    Path | None,
    typer.Option(
        help="Home of a service on this machine: its address and key are there [$FINETUNED_HOME]",
        rich_help_panel=PANEL,
    ),
]
OPTIONS: dict[str, Any] = {"url": Url, "key_file": KeyFile, "home": Home}


def connected(command: Callable[Concatenate["Api", P], None]) -> Callable[..., None]:
    """The command with the options of a connection added; it is given the open `Api` first."""

    @wraps(command)
    def run(**given: Any) -> None:
        url, key_file, home = (given.pop(name) for name in OPTIONS)
        with connect(url, key_file, home) as api:
            command(api, **given)  # type: ignore[call-arg]

    own = list(inspect.signature(command).parameters.values())[1:]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in OPTIONS.items()
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + added
    # Typer reads both.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def connect(url: str | None, key_file: Path | None, home: Path | None, **options: Any) -> "Api":
    """Raises Failure where an address or a key cannot be used."""
    from app.terminal.client import Api, on_loopback

    settings = read_settings(home=home)
    address = url or settings.url or _local_address(settings)
    address = address.rstrip("/").removesuffix("/v1")
    if not address.startswith(("http://", "https://")) or "@" in address:
        raise usage(f"--url: {address!r} is no address like http://host:8000; a key goes into a file.")
    if key_file is not None:
        key: str | None = _read_key(key_file)
    else:
        key = (
            None
            if settings.api_key is None
            else _word(settings.api_key.get_secret_value(), "FINETUNED_API_KEY")
        )
    # The key of this machine's own service is for this machine alone.
    if not key and on_loopback(address) and settings.key_file.exists():
        key = _read_key(settings.key_file)
    if not key and not on_loopback(address):
        raise Failure(f"No API key for {address}: name a file by --key-file, or set FINETUNED_API_KEY.")
    return Api(address, key, **options)


def read_settings(**given: Any) -> "Settings":
    """What the environment says, and options where they are given. Raises Failure, naming the variable."""
    from pydantic import ValidationError

    from app.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        sentence = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise Failure(sentence, Exit.FAILED) from None


def _local_address(settings: "Settings") -> str:
    """Where the home's service says it is, else where it would be."""
    try:
        return settings.address_file.read_text().strip()
    except OSError:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return f"http://{host}:{settings.port}"


def _read_key(file: Path) -> str:
    try:
        key = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text"
        raise Failure(f"--key-file: {file} cannot be read ({why}).") from None
    return _word(key, f"--key-file: {file}")


def _word(key: str, where: str) -> str:
    """What could not be sent would be shown by the error of whoever tried. Raises Failure."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise Failure(f"{where} holds no API key; it is one word.")
    return key
