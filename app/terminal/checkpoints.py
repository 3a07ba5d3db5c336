"""Checkpoints of a job: the list, and keeping one for good."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson, JobId, envelope

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.terminal.client import Api, JsonObject

group = typer.Typer(no_args_is_help=True, help="What jobs have saved on the way.")
CheckpointId = Annotated[
    str, typer.Argument(help="Id of a checkpoint (ftckpt_…), a beginning of it, its step, or `last`")
]
MOST = 10_000


@group.command("list")
@connected
def list_checkpoints(api: "Api", job_id: JobId, as_json: AsJson = False) -> None:
    """List a job's checkpoints, newest first. Each can be used like a model."""
    rows = list(islice(api.pages(_where(ids.job(api, job_id)), 100), MOST))
    screen.show_json(envelope(rows)) if as_json else show(rows)


@group.command("pin")
@connected
def pin(api: "Api", job_id: JobId, checkpoint: CheckpointId, as_json: AsJson = False) -> None:
    """Keep a checkpoint until it is unpinned, whatever else is cleared away."""
    where = _where(ids.job(api, job_id))
    made = api.post(f"{where}/{ids.checkpoint(api, where, checkpoint)}/pin", repeatable=True)
    screen.show_json(made) if as_json else screen.say(f"{made['fine_tuned_model_checkpoint']} is kept.")


@group.command("unpin")
@connected
def unpin(api: "Api", job_id: JobId, checkpoint: CheckpointId, as_json: AsJson = False) -> None:
    """Let a checkpoint go when its time has come."""
    where = _where(ids.job(api, job_id))
    made = api.delete(f"{where}/{ids.checkpoint(api, where, checkpoint)}/pin")
    screen.show_json(made) if as_json else screen.say(f"{made['id']} goes when its time has come.")


def _where(job_id: str) -> str:
    return f"/v1/fine_tuning/jobs/{job_id}/checkpoints"


def show(rows: "Sequence[JsonObject]") -> None:
    screen.table(
        ("checkpoint, usable as a model", ">step", ">loss", ">validation", ">size", ""),
        [
            (
                row["fine_tuned_model_checkpoint"],
                f"{row['step_number']:,}",
                screen.number(row["metrics"].get("train_loss")),
                screen.number(row["metrics"].get("full_valid_loss")),
                screen.size(row["bytes"]),
                " ".join(word for word in ("best", "pinned") if row[word]),
            )
            for row in rows
        ],
        "No checkpoints.",
    )
