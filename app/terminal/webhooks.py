"""Webhook endpoints: who is told when a job ends."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson, envelope, moment
from app.terminal.outcome import usage

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

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


@group.command("change")
@connected
def change_webhook(
    api: "Api",
    endpoint: EndpointId,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="Where to; enables one that had answered 410")
    ] = None,
    name: Annotated[str | None, typer.Option(help="For people")] = None,
    event: Annotated[
        list[str] | None, typer.Option(help="All that it wants to hear of, anew; may be repeated")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change an endpoint's address, name or events; what is not said stays."""
    body = {"url": address, "name": name, "event_types": event or None}
    changes = {field: value for field, value in body.items() if value is not None}
    if not changes:
        raise usage("Say what is to be different: --address, --name or --event.")
    made = api.post(f"/v1/webhook_endpoints/{ids.webhook(api, endpoint)}", changes, repeatable=True)
    screen.show_json(made) if as_json else screen.say(f"{made['id']} is changed.")


@group.command("rotate")
@connected
def rotate_secret(
    api: "Api",
    endpoint: EndpointId,
    keep_old: Annotated[bool, typer.Option("--keep-old", help="The old one signs for a day more")] = False,
    as_json: AsJson = False,
) -> None:
    """Make an endpoint's signing secret anew; it is shown now and never again."""
    where = f"/v1/webhook_endpoints/{ids.webhook(api, endpoint)}/rotate_secret"
    made = api.post(where, {"keep_old_secret_active_for_24_hours": keep_old}, repeatable=True)
    if as_json:
        screen.show_json(made)
        return
    screen.note(f"The new signing secret of {made['id']}, which nobody can show again:")
    screen.say(made["signing_secret"])


@group.command("deliveries")
@connected
def list_deliveries(
    api: "Api",
    endpoint: EndpointId,
    status: Annotated[str | None, typer.Option(help="Only pending, delivered or failed ones")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what was sent to an endpoint or is to be, newest first, and what came of it."""
    where = f"/v1/webhook_endpoints/{ids.webhook(api, endpoint)}/deliveries"
    found = list(islice(api.pages(where, min(limit + 1, MOST), status=status), limit + 1))
    if as_json:
        screen.show_json(envelope(found[:limit], len(found) > limit))
        return
    screen.table(
        ("delivery", "event", "of", "state", ">tries", "answered", "made", "next try"),
        [
            (
                row["id"],
                row["event"]["type"].removeprefix("fine_tuning.job."),
                row["event"]["data"].get("id", ""),
                screen.status(row["status"]),
                row["attempts"],
                _answered(row),
                screen.ago(row["created_at"]),
                "" if row["next_attempt_at"] is None else moment(row["next_attempt_at"]),
            )
            for row in found[:limit]
        ],
        "Nothing has been sent to it.",
    )


def _answered(row: "JsonObject") -> str:
    if not row["log"]:
        return ""
    last = row["log"][-1]
    return str(last.get("status_code") or last.get("error") or "")


@group.command("redeliver")
@connected
def redeliver(
    api: "Api",
    endpoint: EndpointId,
    delivery: Annotated[str, typer.Argument(help="Id of a delivery, a beginning of it, or `last`")],
    as_json: AsJson = False,
) -> None:
    """Send a delivery again, with all its retries; one that waits is sent now."""
    where = f"/v1/webhook_endpoints/{ids.webhook(api, endpoint)}/deliveries"
    made = api.post(f"{where}/{ids.delivery(api, where, delivery)}/redeliver", repeatable=True)
    screen.show_json(made) if as_json else screen.say(f"{made['id']} is sent again.")


@group.command("delete")
@connected
def delete_webhook(api: "Api", endpoint: EndpointId, as_json: AsJson = False) -> None:
    """Delete an endpoint; what waits for it is never sent."""
    gone = api.delete(f"/v1/webhook_endpoints/{ids.webhook(api, endpoint)}")
    screen.show_json(gone) if as_json else screen.say(f"{gone['id']} is deleted.")
