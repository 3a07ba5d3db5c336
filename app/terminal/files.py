"""Files: the list, upload, what training will make of one, delete."""

import errno
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson, envelope
from app.terminal.outcome import Exit, Failure, usage
from app.terminal.upload import upload

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

FileId = Annotated[
    str,
    typer.Argument(help="Id of a file, a beginning of it, or `last`", autocompletion=ids.complete_file),
]
group = typer.Typer(no_args_is_help=True, help="Training and validation files.")


@group.command("list")
@connected
def list_files(
    api: "Api",
    purpose: Annotated[str | None, typer.Option(help="Only files for this, such as fine-tune")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest")] = 50,
    as_json: AsJson = False,
) -> None:
    """List files, newest first."""
    rows = api.pages("/v1/files", min(limit + 1, 10_000), purpose=purpose)
    found = list(islice(rows, limit + 1))
    if as_json:
        screen.show_json(envelope(found[:limit], len(found) > limit))
        return
    screen.table(
        ("file", "name", "status", "shape", ">rows", ">size", "made"),
        [
            (
                row["id"],
                row["filename"],
                screen.status(row["status"]),
                row["shape"] or row["purpose"],
                "-" if row["rows"] is None else f"{row['rows']:,}",
                screen.size(row["bytes"]),
                screen.ago(row["created_at"]),
            )
            for row in found[:limit]
        ],
        "No files. `finetuned files upload FILE` sends one.",
    )


@group.command("upload")
@connected
def upload_file(
    api: "Api",
    file: Annotated[Path, typer.Argument(help="JSON Lines, text, CSV, TSV or Parquet")],
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=THEIRS", help="What a column of the file is called; may be repeated"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Upload a file; it is checked on the way. The same file is not sent twice.

    A large one goes in parts: where the line breaks, only the last part is sent again.
    """
    made = upload(api, file, columns or [], quiet=as_json)
    if as_json:
        screen.show_json(made)
    if made["status"] == "error":
        show_problems(made)
        raise Failure(
            f"{file} cannot be trained on: mend it and upload it again. It is kept as {made['id']}."
        )
    if not as_json:
        rows = "" if made["rows"] is None else f", {made['rows']:,} rows of shape {made['shape']}"
        screen.say(f"{made['id']}: {made['filename']}{rows}.")


@group.command("check")
@connected
def check_file(
    api: "Api",
    file: Annotated[
        str,
        typer.Argument(
            help="A file to upload, or the id of an uploaded one", autocompletion=ids.complete_file
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Count its tokens", autocompletion=ids.complete_model)
    ] = "tiny-gpt2",
    validation_file: Annotated[
        str | None, typer.Option(help="Look for its rows in the file: leakage")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, max=100, help="Rows to show token by token")] = 3,
    offset: Annotated[int, typer.Option(min=0, help="Rows to skip before those")] = 0,
    max_length: Annotated[int | None, typer.Option(min=2, help="As in a job")] = None,
    excess_length: Annotated[str, typer.Option(help="As in a job: split, truncate, drop or error")] = "split",
    train_on_inputs: Annotated[bool, typer.Option(help="As in a job")] = False,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=THEIRS", help="What a column of the file is called; may be repeated"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what training will make of a file: findings, lengths, and which tokens are learned.

    With --json the document has the API's two answers, `report` and `preview`. A file with a finding of
    level error ends with exit code 1.
    """
    from app.terminal import checked

    known = located(api, file, columns or [], quiet=as_json)
    held = None if validation_file is None else located(api, validation_file, columns or [], quiet=as_json)
    question = {"max_length": max_length, "excess_length": excess_length, "train_on_inputs": train_on_inputs}
    report = checked.wait_for_report(api, known, {**question, "model": model, "validation_file": held})
    preview = None
    if rows:
        values = {name: value for name, value in question.items() if value is not None}
        body = {"model": model, "hyperparameters": values, "offset": offset, "limit": rows}
        preview = api.post(f"/v1/files/{known}/preview", body, repeatable=True)
    if as_json:
        screen.show_json({"report": report, "preview": preview})
    else:
        checked.show_report(report)
        if preview is not None:
            checked.show_preview(preview)
    if any(finding["level"] == "error" for finding in report["findings"]):
        raise typer.Exit(Exit.FAILED)


@group.command("get")
@connected
def get_file(
    api: "Api",
    file: FileId,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; by default the standard output")
    ] = None,
) -> None:
    """Write a file's bytes: what was uploaded, or the results of a job."""
    import sys

    import httpx2

    known = ids.file(api, file)
    try:
        # Beside it first: a file that is there is whole.
        part = None if out is None else out.with_name(f"{out.name}.partial")
        with (
            api.stream("GET", f"/v1/files/{known}/content", patient=True, follow_redirects=True) as response,
            nullcontext(sys.stdout.buffer) if part is None else part.open("wb") as target,
        ):
            for block in response.iter_bytes():
                target.write(block)
        if part is not None and out is not None:
            part.replace(out)
    except httpx2.TransportError as error:
        raise api.lost(error) from None
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise Failure(f"{error.filename or out}: {error.strerror}.") from None


@group.command("delete")
@connected
def delete_file(api: "Api", file: FileId, as_json: AsJson = False) -> None:
    """Delete a file; one that a job is still to read is refused."""
    gone = api.delete(f"/v1/files/{ids.file(api, file)}")
    screen.show_json(gone) if as_json else screen.say(f"{gone['id']} is deleted.")


def located(api: "Api", said: str, columns: list[str], *, quiet: bool) -> str:
    """The id of a file that can be trained on, uploaded where it is a path. Raises Failure."""
    path = Path(said)
    if not path.is_file():
        if said == ids.LAST or said.startswith("file-"):
            return ids.file(api, said)
        raise usage(f"{said}: there is no such file, and it is no id of one (file-…).")
    made = upload(api, path, columns, quiet=quiet)
    if made["status"] == "error":
        show_problems(made)
        raise Failure(f"{path} cannot be trained on: mend it and send it again. It is kept as {made['id']}.")
    return str(made["id"])


def show_problems(made: "JsonObject") -> None:
    """Each as line, key and message, on the error output."""
    for problem in made["problems"]:
        where = f"line {problem['line']}"
        key = f": {problem['key']}" if problem.get("key") else ""
        screen.say(f"{made['filename']}: {where}{key}: {problem['message']}", "red", stderr=True)
    if not made["problems"] and made["status_details"]:
        screen.say(f"{made['filename']}: {made['status_details']}", "red", stderr=True)
