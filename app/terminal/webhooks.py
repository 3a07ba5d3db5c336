"""Webhook endpoints: who is told when a job ends."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson, envelope

if TYPE_CHECKING:
    from app.terminal.client import Api

group = typer.Typer(no_args_is_help=True, help="Webhooks: who is told when a job ends.")
MOST = 100
ENDED = ("fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled")
EndpointId = Annotated[str, typer.Argument(help="Id of an endpoint, a beginning of it, or `last`")]


@group.command("list")
@connected
def list_webhooks(api: "Api", as_json: AsJson = False) -> None:
    """List the webhook endpoints, newest first."""
    rows = list(islice(api.pages("/v1/webhook_endpoints", MOST), MOST))
    if as_json:
        screen.show_json(envelope(rows))
        return
    screen.table(
        ("endpoint", "name", "url", "events", "state"),
        [
            (
                row["id"],
                row["name"],
                row["url"],
                " ".join(kind.removeprefix("fine_tuning.job.") for kind in row["event_types"]),
                Text("disabled", "red") if row["disabled"] else "",
            )
            for row in rows
        ],
        "No webhooks. `finetuned webhooks create URL` makes one.",
    )


@group.command("create")
@connected
def create_webhook(
    api: "Api",
    address: Annotated[str, typer.Argument(help="An https URL that takes a POST")],
    name: Annotated[str, typer.Option(help="For people")] = "command line",
    event: Annotated[
        list[str] | None, typer.Option(help="What it wants to hear of; may be repeated; by default every end")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Register an address. Its signing secret is shown now and never again, alone on the standard output."""
    body = {"url": address, "name": name, "event_types": event or list(ENDED)}
    # The service knows a repeated request by its count of tries.
    made = api.post("/v1/webhook_endpoints", body, repeatable=True)
    if as_json:
        screen.show_json(made)
        return
    screen.note(f"Endpoint {made['id']}; its signing secret, which nobody can show again:")
    screen.say(made["signing_secret"])


@group.command("test")
@connected
def check_webhook(api: "Api", endpoint: EndpointId, as_json: AsJson = False) -> None:
    """Send a sample event to an endpoint now, and say what it answered."""
    body = {"event_type": ENDED[0]}
    told = api.post(f"/v1/webhook_endpoints/{ids.webhook(api, endpoint)}/test", body)
    screen.show_json(told) if as_json else screen.say(f"It answered {told['status_code']}.")


@group.command("delete")
@connected
def delete_webhook(api: "Api", endpoint: EndpointId, as_json: AsJson = False) -> None:
    """Delete an endpoint; what waits for it is never sent."""
    gone = api.delete(f"/v1/webhook_endpoints/{ids.webhook(api, endpoint)}")
    screen.show_json(gone) if as_json else screen.say(f"{gone['id']} is deleted.")
