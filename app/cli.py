"""`finetuned …`, the terminal's side of the service, put together.

Commands load what they need when they run: `finetuned --help` and completion answer at once.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from app.terminal import (
    audit,
    chat,
    checkpoints,
    compare,
    doctor,
    download,
    files,
    generate,
    jobs,
    keys,
    metrics,
    models,
    screen,
    storage,
    submit,
    watch,
    webhooks,
    workers,
)
from app.terminal.connection import read_settings
from app.terminal.outcome import Exit, Failure

commands = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks print the values of locals, keys and passwords included
    help="Fine-tune GPT-2-style models on your own GPU behind the OpenAI API.",
)
SERVICE, TRAINING, RESULT, THINGS = (
    "The service",
    "Training",
    "What came of it",
    "Files, models, keys, webhooks",
)


@commands.command(rich_help_panel=SERVICE)
def up(
    home: Annotated[Path | None, typer.Option(help="Folder of all that is kept [$FINETUNED_HOME]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes a free one [8000]")] = None,
    host: Annotated[str | None, typer.Option(help="A loopback address [127.0.0.1]")] = None,
) -> None:
    """Run everything on this machine until Ctrl-C: API, worker, generator, and the servers they need."""
    from app.embedded.process import EmbeddedError
    from app.embedded.up import up as run

    try:
        run(read_settings(home=home, port=port, host=host), typer.echo)
    except EmbeddedError as error:
        raise Failure(str(error)) from None


@commands.command(rich_help_panel=SERVICE)
def prepare() -> None:
    """Bring the database of DATABASE_URL to the newest schema, and write the first API key.

    Once before the programs are started one by one; `up` does it by itself.
    """
    from app.database import NotConfigured
    from app.embedded.process import EmbeddedError
    from app.embedded.up import prepare as run

    try:
        run(read_settings())
    except (NotConfigured, EmbeddedError) as error:
        raise Failure(str(error)) from None


Home = Annotated[Path | None, typer.Option(help="Folder of all that is kept [$FINETUNED_HOME]")]


@commands.command(rich_help_panel=SERVICE)
def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder, on another disk if it can be")],
    home: Home = None,
) -> None:
    """Copy all that is kept into a folder: database, files, checkpoints, models, keys; it may be up.

    The folder holds secrets: keep it as you keep the home.
    """
    from app.terminal.safekeeping import backup as run

    run(read_settings(home=home), folder)


@commands.command(rich_help_panel=SERVICE)
def restore(
    folder: Annotated[Path, typer.Argument(help="What `finetuned backup` made")], home: Home = None
) -> None:
    """Make a new home of a backup; jobs that were running go on from their last checkpoint."""
    from app.terminal.safekeeping import restore as run

    run(read_settings(home=home), folder)


for command in (
    submit.submit,
    jobs.jobs,
    jobs.job,
    watch.watch,
    jobs.logs,
    metrics.metrics,
    jobs.cancel,
    jobs.pause,
    jobs.resume,
):
    commands.command(rich_help_panel=TRAINING)(command)
for command in (compare.compare, compare.diagnose, download.download, generate.generate, chat.chat):
    commands.command(rich_help_panel=RESULT)(command)
for name, group in (
    ("files", files.group),
    ("models", models.group),
    ("checkpoints", checkpoints.group),
    ("keys", keys.group),
    ("webhooks", webhooks.group),
):
    commands.add_typer(group, name=name, rich_help_panel=THINGS)
for command in (workers.workers, storage.storage, audit.audit, doctor.doctor):
    commands.command(rich_help_panel=SERVICE)(command)


def main() -> None:
    """Run the command of the argument list, and end with the code that says how it went."""
    try:
        commands(prog_name="finetuned")
    except Failure as failure:
        screen.complain(failure.sentence)
        sys.exit(failure.code)
    except UnicodeError:
        screen.complain("What was typed or piped is not UTF-8.")
        sys.exit(Exit.FAILED)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


if __name__ == "__main__":
    main()
