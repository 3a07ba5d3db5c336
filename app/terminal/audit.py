"""The audit log: who did what to which thing."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from app.terminal import screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson, envelope, moment

if TYPE_CHECKING:
    from app.terminal.client import Api


@connected
def audit(
    api: "Api",
    owner: Annotated[str | None, typer.Option(help="Only what keys of this owner did")] = None,
    key: Annotated[str | None, typer.Option(help="Only what the key with this id did")] = None,
    action: Annotated[str | None, typer.Option(help="Only this, such as delete_file")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest")] = 50,
    as_json: AsJson = False,
) -> None:
    """List who changed what, newest first; for admins."""
    rows = api.pages("/v1/audit_log", min(limit + 1, 1000), owner=owner, key_id=key, action=action)
    found = list(islice(rows, limit + 1))
    if as_json:
        screen.show_json(envelope(found[:limit], len(found) > limit))
        return
    screen.table(
        ("when", "owner", "key", "action", "of", "request"),
        [
            (
                moment(row["created_at"]),
                row["owner"],
                row["key_id"] or "-",
                row["action"],
                row["target"] or "-",
                row["request_id"] or "-",
            )
            for row in found[:limit]
        ],
        "Nothing that fits was done.",
    )
    if len(found) > limit:
        screen.note(f"There are more; --limit {limit * 5} shows them.")
