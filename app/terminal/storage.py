"""Storage: what is kept, whose it is, and how much room is left."""

from typing import TYPE_CHECKING

from app.terminal import screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

KINDS = ("files", "checkpoints", "models")


@connected
def storage(api: "Api", as_json: AsJson = False) -> None:
    """Show how many bytes are kept, of what and whose, and the room that is left."""
    found = api.get("/v1/storage")
    if as_json:
        screen.show_json(found)
        return
    rows = found.get("owners") or [found]
    screen.table(
        ("owner", *(f">{kind}" for kind in KINDS), ">together"),
        [(row["owner"], *(_kept(row[kind]) for kind in KINDS), screen.size(row["bytes"])) for row in rows],
        "Nothing is kept.",
    )
    key, disk = found["key"], found["disk"]
    limit = "no limit" if key["limit_bytes"] is None else f"of {screen.size(key['limit_bytes'])}"
    full = ": nothing is taken now" if disk["free_bytes"] < disk["least_free_bytes"] else ""
    screen.say("")
    screen.facts(
        [
            ("this key", f"{screen.size(key['used_bytes'])}, {limit}"),
            ("disk", f"{screen.size(disk['free_bytes'])} free of {screen.size(disk['total_bytes'])}"),
            ("kept free", f"{screen.size(disk['least_free_bytes'])}{full}"),
        ]
    )


def _kept(row: "JsonObject") -> str:
    return f"{screen.size(row['bytes'])} in {row['count']:,}" if row["count"] else "-"
