"""`finetuned submit`: files up, request together, job made; or the dry run of all that."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.terminal import ids, screen
from app.terminal.connection import connected
from app.terminal.jobs import AsJson, pair_of
from app.terminal.outcome import Refused, usage

if TYPE_CHECKING:
    from app.terminal.client import Api, JsonObject

COMMON, SOURCE = "Common hyperparameters", "Where the recipe comes from"
DEFAULT_MODEL = "tiny-gpt2"
JOBS = "/v1/fine_tuning/jobs"


def _option(help_text: str, panel: str) -> Any:
    return typer.Option(help=help_text, rich_help_panel=panel)


@connected
def submit(
    api: "Api",
    training_file: Annotated[
        str | None, typer.Argument(help="A file to upload, or the id of an uploaded one", show_default=False)
    ] = None,
    validation_file: Annotated[
        str | None, typer.Option("--validation-file", "-v", help="The same, to evaluate on")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="What to train; tiny-gpt2 where nothing says it",
            autocompletion=ids.complete_model,
        ),
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="Goes into the tuned model's name")] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same result")] = None,
    name: Annotated[str | None, typer.Option(help="A name for people; kept as `name` in metadata")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with the job; may be repeated")
    ] = None,
    method: Annotated[str | None, typer.Option(help="supervised, or dpo for preference pairs")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=THEIRS", help="What a column of the file is called; may be repeated"),
    ] = None,
    refuse_on: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Do not train on files with this finding; may be repeated"),
    ] = None,
    recipe: Annotated[
        Path | None, _option("JSON or YAML: hyperparameters, or a whole request", SOURCE)
    ] = None,
    card: Annotated[
        Path | None, _option('Model card: its block "Training hyperparameters" is the recipe', SOURCE)
    ] = None,
    like: Annotated[str | None, _option("A job whose files and recipe are taken", SOURCE)] = None,
    from_checkpoint: Annotated[
        str | None,
        typer.Option(metavar="JOB:STEP", help="Begin with this checkpoint's weights", rich_help_panel=SOURCE),
    ] = None,
    priority: Annotated[str | None, typer.Option(help="high, normal or low")] = None,
    require_label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Only a worker with this; may be repeated")
    ] = None,
    require_memory: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="Only a device with so much memory")
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any hyperparameter; overrules the above; may be repeated"
        ),
    ] = None,
    num_epochs: Annotated[float | None, _option("Passes over the examples", COMMON)] = None,
    max_steps: Annotated[int | None, _option("Steps to take, instead of epochs", COMMON)] = None,
    learning_rate: Annotated[float | None, _option("Peak learning rate", COMMON)] = None,
    total_train_batch_size: Annotated[
        int | None,
        typer.Option(
            "--total-train-batch-size", "--batch-size", help="Examples per step", rich_help_panel=COMMON
        ),
    ] = None,
    max_length: Annotated[int | None, _option("Tokens per example at most", COMMON)] = None,
    lora_rank: Annotated[int | None, _option("Train LoRA matrices of this rank alone", COMMON)] = None,
    dry_run: Annotated[bool, typer.Option(help="Make no job; say what it would do, need and take")] = False,
    watch: Annotated[bool, typer.Option(help="Stay and watch it; the exit code says how it ended")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload what is not there yet and make a job.

    With --dry-run files that are no ids are uploaded all the same: only the service can count their tokens.
    """
    from app.terminal import recipe as recipes
    from app.terminal.files import located

    if sum(source is not None for source in (recipe, card, like)) > 1:
        raise usage("--recipe, --card and --like: give one of them; --set changes single values.")
    if watch and (as_json or dry_run):
        raise usage(
            "--watch goes with neither --json nor --dry-run; `finetuned watch ID --json` follows a job."
        )
    body: JsonObject = {}
    if recipe is not None:
        body = recipes.read_file(recipe)
    elif card is not None:
        body, remarks = recipes.read_card(card)
        for remark in remarks:
            screen.say(f"{card.name}: {remark}", "yellow", stderr=True)
    elif like is not None:
        body = recipes.like(api, ids.job(api, like))
    flags = {
        "num_epochs": num_epochs,
        "max_steps": max_steps,
        "learning_rate": learning_rate,
        "total_train_batch_size": total_train_batch_size,
        "max_length": max_length,
        "lora_rank": lora_rank,
    }
    changes = recipes.assignments(assign or [], flags)
    body["hyperparameters"] = recipes.changed(body.get("hyperparameters", {}), changes)
    pairs = dict(pair_of("--metadata", pair) for pair in metadata or ()) | ({"name": name} if name else {})
    given = {
        "suffix": suffix,
        "seed": seed,
        "method": {"type": method} if method else None,
        "refuse_on": refuse_on,
        "from_checkpoint": from_checkpoint,
        "priority": priority,
        "requires": _requires(body.get("requires"), require_label, require_memory),
        "metadata": {**(body.get("metadata") or {}), **pairs} or None,
    }
    body |= {field: value for field, value in given.items() if value is not None}
    if seed is not None:
        body["hyperparameters"].pop("seed", None)
    elif "seed" in changes:
        body.pop("seed", None)
    if model is not None or "model" not in body:
        body["model"] = model or DEFAULT_MODEL
    if body["model"].startswith(("ft:", "ftjob-")) or body["model"] == ids.LAST:
        body["model"] = ids.model(api, body["model"])
    files = {"training_file": training_file, "validation_file": validation_file}
    for field, said in files.items():
        said = said or body.get(field)
        if said is not None:
            body[field] = located(api, said, columns or [], quiet=as_json)
    if body.get("training_file") is None:
        raise usage("Name a file to train on: finetuned submit FILE, or --like with a job that had one.")
    _make(api, body, dry_run, watch, as_json)


def _requires(said: "JsonObject | None", labels: list[str] | None, memory: int | None) -> "JsonObject | None":
    given = {"labels": labels, "memory_bytes": memory}
    return {**(said or {}), **{name: value for name, value in given.items() if value is not None}} or None


def _make(api: "Api", body: "JsonObject", dry_run: bool, watch: bool, as_json: bool) -> None:
    try:
        if dry_run:
            found = api.post(JOBS, {**body, "dry_run": True}, repeatable=True)
        else:
            found = api.post(JOBS, body, idempotency_key=f"finetuned-{secrets.token_hex(16)}")
    except Refused as refusal:
        where, _, name = (refusal.param or "").partition(".")
        if where == "hyperparameters" and refusal.error_code != "unknown_parameter":
            refusal.sentence += f" Set it by --set {name}=…."
        raise
    if as_json:
        screen.show_json(found)
    elif dry_run:
        from app.terminal.rehearsal import show

        show(found)
    else:
        screen.say(f"{found['id']} is {found['status']}: {found['model']} on {found['training_file']}.")
        if not watch:
            screen.note(f"Watch it by: finetuned watch {found['id']}")
    if watch:
        from app.terminal.watch import watch_job

        watch_job(api, found["id"])
