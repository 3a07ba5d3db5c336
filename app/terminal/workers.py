"""Workers: who trains, on what, and whether they are heard of."""

from typing import TYPE_CHECKING

from rich.text import Text

from app.terminal import screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject


@connected
def workers(api: "Api", as_json: AsJson = False) -> None:
    """List the workers, those that were heard of last first."""
    found = api.get("/v1/workers")
    if as_json:
        screen.show_json(found)
        return
    screen.table(
        ("worker", "host", "state", ">slots", "devices", "labels", "jobs", "heard of"),
        [
            (
                row["id"],
                row["host"],
                _state(row),
                f"{row['busy']}/{row['slots']}",
                _devices(row),
                " ".join(row.get("labels") or ()),
                " ".join(row["jobs"]),
                screen.ago(row["seen_at"]),
            )
            for row in found["data"]
        ],
        "No workers. `finetuned up` starts one.",
    )


def _state(row: "JsonObject") -> Text:
    if not row["alive"]:
        return Text("silent", "red")
    return Text("leaving", "yellow") if row["draining"] else Text("alive", "green")


def _devices(row: "JsonObject") -> str:
    if row["devices"] is None:
        return "-"
    told = (f"{one['name']} ({screen.size(one.get('memory_bytes'))})" for one in row["devices"])
    return ", ".join(told) or "processors"
