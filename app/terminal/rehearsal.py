"""What a dry run told, for a person."""

from typing import TYPE_CHECKING

from rich.text import Text

from app.terminal import screen

if TYPE_CHECKING:
    from app.terminal.client import JsonObject


def show(found: "JsonObject") -> None:
    """What is not known is left out."""
    memory = found["memory"] or {}
    needed = memory.get("needed_bytes")
    there = memory.get("available_bytes")
    screen.facts(
        [
            ("model", found["model"]),
            ("parameters", _count(found["parameters"])),
            ("examples", _count(found["examples"])),
            ("validation", _count(found["validation_examples"])),
            ("tokens", found["total_tokens"] and _tokens(found)),
            (
                "steps",
                found["total_steps"] and f"{found['total_steps']:,}, {found['steps_per_epoch']:,} an epoch",
            ),
            ("memory", needed and f"{screen.size(needed)}{f' of {screen.size(there)}' if there else ''}"),
            ("takes", found["estimated_seconds"] and f"about {screen.span(found['estimated_seconds'])}"),
            ("device", memory.get("device")),
        ]
    )
    if found["recipe"]:
        screen.say("\nrecipe", "bold")
        screen.facts(
            [(name, value) for name, value in sorted(found["recipe"].items()) if value not in (None, [])]
        )
    for told in found["warnings"]:
        style = "red" if told["level"] == "error" else "yellow"
        screen.say(Text.assemble((f"\n{told['level']}: ", style), screen.plain(told["message"])))
    screen.note("\nNo job was made; leave --dry-run out to make it.")


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def _tokens(found: "JsonObject") -> str:
    about = "" if found["exact"] else "about "
    return f"{about}{found['total_tokens']:,} an epoch, of which {found['trained_tokens']:,} are learned"
