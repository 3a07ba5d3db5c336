"""Models: the list, and deleting one of one's own."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson

if TYPE_CHECKING:
    from app.terminal.client import Api

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


@group.command("delete")
@connected
def delete_model(
    api: "Api",
    model: Annotated[
        str, typer.Argument(help="A tuned model's name, or a job's id", autocompletion=ids.complete_model)
    ],
    as_json: AsJson = False,
) -> None:
    """Delete a tuned model; one that a job trains from is refused."""
    from app.terminal.client import path

    gone = api.delete(path("models", ids.model(api, model)))
    screen.show_json(gone) if as_json else screen.say(f"{gone['id']} is deleted.")
