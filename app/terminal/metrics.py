"""A job's numbers, step by step."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson, JobId

if TYPE_CHECKING:
    from app.terminal.client import Api

# What is shown of a step, and how: name, heading, digits behind the point.
SHOWN = (
    ("loss", ">loss", 4),
    ("valid_loss", ">validation", 4),
    ("learning_rate", ">learning rate", 8),
    ("grad_norm", ">gradient norm", 3),
    ("tokens_per_second", ">tokens/s", 0),
)


@connected
def metrics(
    api: "Api",
    job_id: JobId,
    points: Annotated[
        int, typer.Option(min=10, max=10_000, help="About so many steps: of each stretch lowest and highest")
    ] = 40,
    as_json: AsJson = False,
) -> None:
    """Print what a job's steps measured, oldest first, thinned where there are many."""
    found = api.get(f"/v1/fine_tuning/jobs/{ids.job(api, job_id)}/metrics", points=points)
    if as_json:
        screen.show_json(found)
        return
    screen.table(
        (">step", *(heading for _, heading, _ in SHOWN)),
        [
            (f"{row['step']:,}", *(screen.number(row.get(name), digits) for name, _, digits in SHOWN))
            for row in found["data"]
        ],
        "No step has been measured yet.",
    )
