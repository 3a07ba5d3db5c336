"""API keys: the list, one, a new one, changing and revoking. All but one's own asks for a key of an admin."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson, envelope
from app.terminal.outcome import usage

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

group = typer.Typer(no_args_is_help=True, help="API keys, for admins.")
DAY = 86_400  # seconds
PerMinute = Annotated[int | None, typer.Option(min=1, help="More are refused for a moment")]
Running = Annotated[int | None, typer.Option(min=1, help="Further ones wait in the queue")]
Stored = Annotated[int | None, typer.Option(min=1, help="Of files, models and checkpoints")]
ExpiresIn = Annotated[int | None, typer.Option(min=1, metavar="DAYS", help="Days until it ends")]
KeyId = Annotated[str, typer.Argument(help="Id of a key, or a beginning of it; `me` is the one in use")]


@group.command("list")
@connected
def list_keys(
    api: "Api",
    owner: Annotated[str | None, typer.Option(help="Only keys of this owner")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Those that are revoked too")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest")] = 100,
    as_json: AsJson = False,
) -> None:
    """List keys, newest first; never what they are."""
    rows = api.pages("/v1/api_keys", 1000, owner=owner)
    found = list(islice((row for row in rows if everything or row["revoked_at"] is None), limit + 1))
    if as_json:
        screen.show_json(envelope(found[:limit], len(found) > limit))
        return
    screen.table(
        ("key", "name", "owner", "scopes", "last used", "state"),
        [
            (
                row["id"],
                row["name"],
                row["owner"],
                " ".join(row["scopes"]),
                screen.ago(row["last_used_at"]),
                _state(row),
            )
            for row in found[:limit]
        ],
        "No such keys.",
    )


def _state(row: "JsonObject") -> Text:
    import time

    if row["revoked_at"] is not None:
        return Text("revoked", "dim")
    if row["expires_at"] is None:
        return Text("")
    left = row["expires_at"] - time.time()
    return Text("expired", "red") if left <= 0 else Text(f"ends in {screen.span(left)}")


@group.command("create")
@connected
def create_key(
    api: "Api",
    name: Annotated[str, typer.Argument(help="A label: letters, digits, space and . _ @ -")],
    owner: Annotated[str | None, typer.Option(help="Whose things it sees; by default yours")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it may do, such as jobs:write; may be repeated; by default all but admin"),
    ] = None,
    expires_in: ExpiresIn = None,
    requests_per_minute: PerMinute = None,
    running_jobs: Running = None,
    storage_bytes: Stored = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown now and never again, alone on the standard output: it can go to a file."""
    limits = _said(
        requests_per_minute=requests_per_minute, running_jobs=running_jobs, storage_bytes=storage_bytes
    )
    body = _said(name=name, owner=owner, scopes=scope, expires_at=_end(expires_in), limits=limits or None)
    made = api.post("/v1/api_keys", body)
    if as_json:
        screen.show_json(made)
        return
    screen.note(f"Key {made['id']} of {made['owner']}; nobody can show it again:")
    screen.say(made["value"])


@group.command("show")
@connected
def show_key(api: "Api", key: KeyId = "me", as_json: AsJson = False) -> None:
    """Show what a key may do and its limits; by default the one in use, which everybody may see."""
    from app.terminal.client import path

    found = api.get(path("api_keys", key if key == "me" else ids.key(api, key)))
    if as_json:
        screen.show_json(found)
        return
    limits = {name: value for name, value in found["limits"].items() if value is not None}
    screen.facts(
        [
            ("key", found["id"]),
            ("name", found["name"]),
            ("owner", found["owner"]),
            ("scopes", " ".join(found["scopes"])),
            ("state", _state(found).plain or None),
            ("last used", screen.ago(found["last_used_at"])),
            *((name.replace("_", " "), f"{value:,}") for name, value in limits.items()),
        ]
    )


@group.command("change")
@connected
def change_key(
    api: "Api",
    key: KeyId,
    name: Annotated[str | None, typer.Option(help="A label: letters, digits, space and . _ @ -")] = None,
    scope: Annotated[list[str] | None, typer.Option(help="All that it may do, anew; may be repeated")] = None,
    expires_in: ExpiresIn = None,
    requests_per_minute: PerMinute = None,
    running_jobs: Running = None,
    storage_bytes: Stored = None,
    as_json: AsJson = False,
) -> None:
    """Change a key's name, scopes, end or limits; what is not said stays. It holds at once."""
    from app.terminal.client import path

    where = path("api_keys", ids.key(api, key) if key != "me" else api.get("/v1/api_keys/me")["id"])
    limits = _said(
        requests_per_minute=requests_per_minute, running_jobs=running_jobs, storage_bytes=storage_bytes
    )
    body = _said(name=name, scopes=scope or None, expires_at=_end(expires_in))
    if limits:  # the service takes all of them or none
        body["limits"] = api.get(where)["limits"] | limits
    if not body:
        raise usage("Say what is to be different: --name, --scope, --expires-in or a limit.")
    made = api.post(where, body, repeatable=True)
    screen.show_json(made) if as_json else screen.say(f"The key {made['id']} is changed.")


def _said(**given: object) -> "JsonObject":
    return {name: value for name, value in given.items() if value is not None}


def _end(days: int | None) -> int | None:
    import time

    return None if days is None else int(time.time()) + days * DAY


@group.command("revoke")
@connected
def revoke_key(api: "Api", key: KeyId, as_json: AsJson = False) -> None:
    """Revoke a key: from now on it is unknown. Its owner's things stay."""
    from app.terminal.client import path

    if key == ids.LAST:
        raise usage("Name the key that is to be revoked; `finetuned keys list` shows them.")
    gone = api.delete(path("api_keys", key if key == "me" else ids.key(api, key)))
    screen.show_json(gone) if as_json else screen.say(f"The key {gone['id']} is revoked.")
