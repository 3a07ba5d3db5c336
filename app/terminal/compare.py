"""`finetuned compare` and `finetuned diagnose`: what jobs did, side by side, and what is wrong with one."""

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from app.terminal import ids, plot, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson, JobId
from app.terminal.outcome import usage

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

MOST = len(plot.COLOURS)
POINTS = 1000
HEIGHT = 18  # lines of the plot
BESIDE = ("model", "training_file", "validation_file", "from_checkpoint")


@connected
def compare(
    api: "Api",
    jobs: Annotated[
        list[str],
        typer.Argument(help="Two jobs or more, by id, beginning or `last`", autocompletion=ids.complete_job),
    ],
    validation: Annotated[
        bool, typer.Option("--validation", help="Draw the validation loss instead of the training loss")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put jobs side by side: curves over one another, what differs in their recipes, how they ended.

    With --json: the `jobs` and their `metrics`, as the API answered.
    """
    known = [ids.job(api, given) for given in jobs]
    if not 2 <= len(known) <= MOST or len(set(known)) < len(known):
        raise usage(f"Name from 2 to {MOST} different jobs.")
    found = [api.get(f"/v1/fine_tuning/jobs/{job_id}") for job_id in known]
    metrics = [api.get(f"/v1/fine_tuning/jobs/{job_id}/metrics", points=POINTS) for job_id in known]
    if as_json:
        screen.show_json({"jobs": found, "metrics": metrics})
        return
    name = "valid_loss" if validation else "loss"
    console = screen.console()
    curves = [
        plot.Curve(job["id"], [(row["step"], row[name]) for row in rows["data"] if row.get(name) is not None])
        for job, rows in zip(found, metrics, strict=True)
    ]
    colours = console.color_system is not None and not console.no_color
    width = console.size.width - 1 if console.is_terminal else 100
    for line in plot.draw(curves, width, HEIGHT, colours=colours):
        screen.say(line)
    screen.table(
        ("", *known),
        [*_outcomes(found, [rows["data"] for rows in metrics]), *_differences(found)],
        "",
    )


def _outcomes(found: "list[JsonObject]", metrics: "list[list[JsonObject]]") -> list[list[Any]]:
    def last(rows: "list[JsonObject]", name: str) -> float | None:
        return next((row[name] for row in reversed(rows) if row.get(name) is not None), None)

    def best(rows: "list[JsonObject]") -> float | None:
        return min((row["valid_loss"] for row in rows if row.get("valid_loss") is not None), default=None)

    def took(job: "JsonObject") -> str:
        both = job["started_at"] is not None and job["finished_at"] is not None
        return screen.span(job["finished_at"] - job["started_at"]) if both else "-"

    return [
        ["status", *(screen.status(job["status"]) for job in found)],
        ["steps", *(f"{job['progress']['step']:,}" for job in found)],
        ["final loss", *(screen.number(last(rows, "loss")) for rows in metrics)],
        ["final validation loss", *(screen.number(last(rows, "valid_loss")) for rows in metrics)],
        ["best validation loss", *(screen.number(best(rows)) for rows in metrics)],
        ["took", *(took(job) for job in found)],
    ]


def _differences(found: "list[JsonObject]") -> list[list[Any]]:
    """Only what is not the same in all of them."""
    sides = [{**{name: job.get(name) for name in BESIDE}, **job["recipe"]} for job in found]
    names = list(dict.fromkeys(name for side in sides for name in side))
    rows = []
    for name in names:
        values = [side.get(name) for side in sides]
        if any(value != values[0] for value in values):
            rows.append([name, *(Text(_short(value), "bold") for value in values)])
    return rows


def _short(value: object) -> str:
    return "-" if value is None else screen.plain(value if isinstance(value, str) else json.dumps(value))


@connected
def diagnose(api: "Api", job_id: JobId, as_json: AsJson = False) -> None:
    """Say what is wrong with a job, and give the command for a new one with what would help."""
    known = ids.job(api, job_id)
    found = api.get(f"/v1/fine_tuning/jobs/{known}/diagnosis")
    if as_json:
        screen.show_json(found)
        return
    if not found["findings"]:
        screen.say(
            "Nothing is wrong, as far as the curves tell."
            if found["step"]
            else "There is nothing to judge yet."
        )
    for finding in found["findings"]:
        screen.say(Text.assemble((f"{finding['code']}: ", "bold yellow"), screen.plain(finding["says"])))
        for remedy in finding["remedies"]:
            screen.say(f"  {remedy['says']}")
            if remedy["hyperparameters"]:
                screen.say(f"    {command(known, remedy['hyperparameters'])}", "cyan")


def command(job_id: str, changes: "JsonObject") -> str:
    """What submits the job again with these hyperparameters."""
    words = ["finetuned", "submit", "--like", job_id]
    for name, value in changes.items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)
