"""API keys: the list, a new one, and revoking one. All of it asks for a key of an admin."""

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
    expires_in: Annotated[int | None, typer.Option(min=1, metavar="DAYS", help="Days until it ends")] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="More are refused for a moment")
    ] = None,
    running_jobs: Annotated[int | None, typer.Option(min=1, help="Further ones wait in the queue")] = None,
    storage_bytes: Annotated[int | None, typer.Option(min=1, help="Of files, models and checkpoints")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown now and never again, alone on the standard output: it can go to a file."""
    import time

    limits = {
        "requests_per_minute": requests_per_minute,
        "running_jobs": running_jobs,
        "storage_bytes": storage_bytes,
    }
    body = {
        "name": name,
        "owner": owner,
        "scopes": scope,
        "expires_at": None if expires_in is None else int(time.time()) + expires_in * DAY,
        "limits": {name: value for name, value in limits.items() if value is not None} or None,
    }
    made = api.post("/v1/api_keys", {field: value for field, value in body.items() if value is not None})
    if as_json:
        screen.show_json(made)
        return
    screen.note(f"Key {made['id']} of {made['owner']}; nobody can show it again:")
    screen.say(made["value"])


@group.command("revoke")
@connected
def revoke_key(
    api: "Api",
    key: Annotated[str, typer.Argument(help="Id of a key, or a beginning of it; `me` is the one in use")],
    as_json: AsJson = False,
) -> None:
    """Revoke a key: from now on it is unknown. Its owner's things stay."""
    from app.terminal.client import path

    if key == ids.LAST:
        raise usage("Name the key that is to be revoked; `finetuned keys list` shows them.")
    gone = api.delete(path("api_keys", key if key == "me" else ids.key(api, key)))
    screen.show_json(gone) if as_json else screen.say(f"The key {gone['id']} is revoked.")
