"""Models: the list, who may use them, and deleting one of one's own."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson, envelope
from app.terminal.outcome import Failure

if TYPE_CHECKING:
    from app.terminal.client import Api

Mine = Annotated[
    str, typer.Argument(help="A tuned model's name, or a job's id", autocompletion=ids.complete_model)
]
MOST = 10_000
group = typer.Typer(no_args_is_help=True, help="Models: yours, those you may use, base models.")


@group.command("list")
@connected
def list_models(
    api: "Api",
    mine: Annotated[bool, typer.Option("--mine", help="Only your own tuned models")] = False,
    as_json: AsJson = False,
) -> None:
    """List models: your own and those that others permit you first, newest first, then base models."""
    found = api.get("/v1/models")
    if mine:
        found["data"] = [row for row in found["data"] if "job" in row]
    if as_json:
        screen.show_json(found)
        return
    screen.table(
        ("model", "base", "owner", "job", ">size", "made"),
        [
            (
                row["id"],
                row.get("base_model", ""),
                row["owned_by"],
                row.get("job") or "",
                screen.size(row["bytes"]) if "bytes" in row else "",
                screen.ago(row["created"]) if "job" in row else "",
            )
            for row in found["data"]
        ],
        "No models of yours. `finetuned submit FILE` makes one.",
    )


@group.command("share")
@connected
def share_model(
    api: "Api",
    model: Mine,
    owners: Annotated[list[str], typer.Argument(help="By the names that their API keys carry")],
    as_json: AsJson = False,
) -> None:
    """Permit other owners to generate with a model of yours, and to train from it."""
    from app.terminal.client import path

    where = path("fine_tuning", "checkpoints", ids.model(api, model), "permissions")
    made = api.post(where, {"project_ids": owners}, repeatable=True)
    if as_json:
        screen.show_json(made)
        return
    screen.say(f"Permitted to {', '.join(row['project_id'] for row in made['data'])}.")


@group.command("permissions")
@connected
def list_permissions(api: "Api", model: Mine, as_json: AsJson = False) -> None:
    """List who may use a model or a checkpoint of yours, the newest permission first."""
    from app.terminal.client import path

    where = path("fine_tuning", "checkpoints", ids.model(api, model), "permissions")
    rows = list(islice(api.pages(where, 100), MOST))
    if as_json:
        screen.show_json(envelope(rows))
        return
    screen.table(
        ("owner", "since", "permission"),
        [(row["project_id"], screen.ago(row["created_at"]), row["id"]) for row in rows],
        "Nobody but you may use it. `finetuned models share` permits it to others.",
    )


@group.command("unshare")
@connected
def unshare_model(
    api: "Api",
    model: Mine,
    owner: Annotated[str, typer.Argument(help="Whose permission ends")],
    as_json: AsJson = False,
) -> None:
    """Take a permission back; what was queued with it goes on."""
    from app.terminal.client import path

    where = path("fine_tuning", "checkpoints", ids.model(api, model), "permissions")
    found = api.get(where, project_id=owner)["data"]
    if not found:
        raise Failure(f"{owner!r} has no permission for it.")
    gone = api.delete(f"{where}/{found[0]['id']}")
    screen.show_json(gone) if as_json else screen.say(f"{owner} may not use it any more.")


@group.command("delete")
@connected
def delete_model(
    api: "Api",
    model: Mine,
    as_json: AsJson = False,
) -> None:
    """Delete a tuned model; one that a job trains from is refused."""
    from app.terminal.client import path

    gone = api.delete(path("models", ids.model(api, model)))
    screen.show_json(gone) if as_json else screen.say(f"{gone['id']} is deleted.")
