"""Jobs: the list, one in full, its history, and the three wishes."""

from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.outcome import Exit, usage

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

JobId = Annotated[
    str,
    typer.Argument(help="Id of a job, a beginning of it, or `last`", autocompletion=ids.complete_job),
]
AsJson = Annotated[bool, typer.Option("--json", help="What the API answered, as one JSON document")]
STATUSES = ("validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled")
ENDINGS = {
    "succeeded": Exit.OK,
    "failed": Exit.JOB_FAILED,
    "cancelled": Exit.JOB_CANCELLED,
    "paused": Exit.JOB_PAUSED,
}


@connected
def jobs(
    api: "Api",
    status: Annotated[
        list[str] | None,
        typer.Option(help=f"Only jobs in this state; may be repeated: {', '.join(STATUSES)}"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Only jobs of this base model or with it in a name")
    ] = None,
    search: Annotated[
        str | None, typer.Option(help="Only jobs with this in their id, base model or new model's name")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only jobs with this pair; may be repeated")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    if unknown := set(status or ()) - set(STATUSES):
        raise usage(f"--status: {unknown.pop()!r} is none of {', '.join(STATUSES)}.")
    wanted = {f"metadata[{key}]": value for key, value in (pair_of("--metadata", m) for m in metadata or ())}

    # The service searches ids too: of what it finds for a model, rows with it in a name are left.
    def names(row: "JsonObject") -> bool:
        return model is None or model in f"{row['model']} {row['fine_tuned_model'] or ''}"

    page = 1000 if model is not None and search is not None else min(limit + 1, 1000)
    asked = {"status": status or None, "search": model if search is None else search, **wanted}
    rows = api.pages("/v1/fine_tuning/jobs", page, **asked)
    chosen = list(islice((row for row in rows if names(row)), limit + 1))
    shown, more = chosen[:limit], len(chosen) > limit
    if as_json:
        screen.show_json(envelope(shown, more))
        return
    screen.table(
        ("job", "status", "progress", "model", "made", "result"),
        [
            (
                row["id"],
                screen.status(row["status"]),
                progress(row),
                row["model"],
                screen.ago(row["created_at"]),
                row["fine_tuned_model"] or (row["error"] or {}).get("code") or "",
            )
            for row in shown
        ],
        "No jobs. `finetuned submit FILE` makes one.",
    )
    if more:
        screen.note(f"There are more; --limit {limit * 5} shows them.")


def envelope(rows: "list[JsonObject]", more: bool = False) -> "JsonObject":
    """A list as the API gives it, of rows that were chosen here."""
    first, last = (rows[0]["id"], rows[-1]["id"]) if rows else (None, None)
    return {"object": "list", "data": rows, "has_more": more, "first_id": first, "last_id": last}


def pair_of(option: str, text: str) -> tuple[str, str]:
    """`key=value` of an option. Raises Failure."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise usage(f"{option}: {text!r} is no pair; write {option} key=value.")
    return key, value


def progress(row: "JsonObject") -> str:
    if row["status"] == "queued" and row.get("queue"):
        return f"place {row['queue']['position']}"
    done, total = row["progress"]["step"], row["progress"]["total_steps"]
    if not total:
        return ""
    return f"{done / total:.0%} of {total:,}"


@connected
def job(api: "Api", job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job: where it stands, its recipe, its checkpoints."""
    found = api.get(f"/v1/fine_tuning/jobs/{ids.job(api, job_id)}")
    if as_json:
        screen.show_json(found)
        return
    error = found["error"] or {}
    wish = (
        "to be cancelled"
        if found["cancel_requested"]
        else "to be paused"
        if found["pause_requested"]
        else None
    )
    screen.facts(
        [
            ("job", found["id"]),
            ("status", screen.status(found["status"])),
            ("asked", wish),
            ("error", error.get("message") and f"{error['message']} ({error['code']})"),
            ("model", found["model"]),
            ("result", found["fine_tuned_model"]),
            ("progress", progress(found) or None),
            ("phase", found["progress"]["phase"]),
            ("priority", None if found["priority"] == "normal" else found["priority"]),
            ("requires", " ".join(found["requires"]["labels"] or []) or None),
            ("attempt", f"{found['attempt']} of {found['max_attempts']}" if found["attempt"] else None),
            ("worker", found["worker"]),
            ("training file", found["training_file"]),
            ("validation file", found["validation_file"]),
            ("metadata", found["metadata"] and ", ".join(f"{k}={v}" for k, v in found["metadata"].items())),
            ("trained tokens", found["trained_tokens"] and f"{found['trained_tokens']:,}"),
            ("made", screen.ago(found["created_at"])),
            ("took", _took(found)),
        ]
    )
    _show_recipe(found)
    _show_attempts(api, found["id"])
    _show_checkpoints(api, found["id"])


def _took(found: "JsonObject") -> str | None:
    if found["started_at"] is None or found["finished_at"] is None:
        return None
    return screen.span(found["finished_at"] - found["started_at"])


def _show_recipe(found: "JsonObject") -> None:
    asked = set(found["hyperparameters"])
    screen.say("\nrecipe", "bold")
    screen.facts(
        [
            (name, Text(screen.plain(value), style="bold" if name in asked else ""))
            for name, value in sorted(found["recipe"].items())
            if value not in (None, [], "")
        ]
    )


def _show_attempts(api: "Api", job_id: str) -> None:
    """Who had it, on what, and what ended that."""
    rows = list(reversed(api.get(f"/v1/fine_tuning/jobs/{job_id}/attempts", limit=1000)["data"]))
    if rows:
        screen.say("\nattempts", "bold")
        screen.table(
            ("worker", "device", "began", ">lasted", ">tokens/s", "ended"),
            [
                (
                    row["worker"],
                    row["device"] or "-",
                    moment(row["started_at"]),
                    "-" if row["ended_at"] is None else screen.span(row["ended_at"] - row["started_at"]),
                    "-" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}",
                    _ended(row),
                )
                for row in rows
            ],
            "",
        )


def _ended(row: "JsonObject") -> str:
    if row["ended_at"] is None:
        return "goes on"
    code = f" (exit code {row['exit_code']})" if row["exit_code"] else ""
    return f"{(row['reason'] or '-').replace('_', ' ')}{code}"


def _show_checkpoints(api: "Api", job_id: str) -> None:
    from app.terminal.checkpoints import show

    rows = list(islice(api.pages(f"/v1/fine_tuning/jobs/{job_id}/checkpoints", 100), 100))
    if rows:
        screen.say("\ncheckpoints", "bold")
        show(rows)


def moment(seconds: int) -> str:
    """A time of the wire by the clock of this machine."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def event_line(row: "JsonObject") -> Text:
    style = screen.STYLES.get(row["level"], "")
    return Text.assemble((f"{moment(row['created_at'])}  ", "dim"), (screen.plain(row["message"]), style))


@connected
def logs(
    api: "Api",
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends")] = False,
    tail: Annotated[int, typer.Option(min=1, help="Begin with at most so many of the newest events")] = 100,
    as_json: AsJson = False,
) -> None:
    """Print what happened to a job, oldest first.

    With --follow and --json each event is one line of JSON.
    """
    from app.terminal.follow import follow as messages

    known = ids.job(api, job_id)
    rows = list(islice(api.pages(f"/v1/fine_tuning/jobs/{known}/events", min(tail + 1, 1000)), tail + 1))
    newest = list(reversed(rows[:tail]))
    if as_json and not follow:
        screen.show_json(envelope(newest, len(rows) > tail))
        return

    def show(row: "JsonObject") -> None:
        screen.show_json(row, line=True) if as_json else screen.say(event_line(row))

    for row in newest:
        show(row)
    if not follow:
        return
    after = f"{newest[-1]['id'] if newest else ''}:{10**17}"  # events alone: no step lies beyond that one
    for message in messages(api, known, after):
        if message.body is not None and message.body.get("object") == "fine_tuning.job.event":
            show(message.body)


@connected
def cancel(api: "Api", job_id: JobId, as_json: AsJson = False) -> None:
    """End a job; a running one saves a checkpoint first, which stays."""
    _wish(api, "cancel", job_id, as_json)


@connected
def pause(api: "Api", job_id: JobId, as_json: AsJson = False) -> None:
    """Set a job aside; it saves a checkpoint and goes on from it when resumed."""
    _wish(api, "pause", job_id, as_json)


@connected
def resume(api: "Api", job_id: JobId, as_json: AsJson = False) -> None:
    """Queue a paused job again."""
    _wish(api, "resume", job_id, as_json)


def _wish(api: "Api", verb: str, job_id: str, as_json: bool) -> None:
    # The service knows a repeated wish by its count of tries.
    found = api.post(f"/v1/fine_tuning/jobs/{ids.job(api, job_id)}/{verb}", repeatable=True)
    if as_json:
        screen.show_json(found)
    elif verb != "resume" and found["status"] == "running":
        screen.say(f"{found['id']} saves a checkpoint and is then {_done(verb)}.")
    else:
        screen.say(f"{found['id']} is {found['status']}.")


def _done(verb: str) -> str:
    return {"cancel": "cancelled", "pause": "paused"}[verb]
