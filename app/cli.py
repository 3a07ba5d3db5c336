"""`finetuned …`, the terminal's side of the service."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from app.settings import Settings

commands = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks print the values of locals, keys and passwords included
    help="Fine-tune GPT-2-style models on your own GPU behind the OpenAI API.",
)


@commands.command()
def up(
    home: Annotated[Path | None, typer.Option(help="Folder of all that is kept [$FINETUNED_HOME]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 takes a free one [8000]")] = None,
    host: Annotated[str | None, typer.Option(help="A loopback address [127.0.0.1]")] = None,
) -> None:
    """Run everything on this machine until Ctrl-C: API, worker, generator, and the servers they need."""
    from app.embedded.process import EmbeddedError
    from app.embedded.up import up as run

    try:
        run(settings(home=home, port=port, host=host), typer.echo)
    except EmbeddedError as error:
        refuse(str(error))


@commands.command()
def prepare() -> None:
    """Bring the database of DATABASE_URL to the newest schema, and write the first API key.

    Once before the programs are started one by one; `up` does it by itself.
    """
    from app.database import NotConfigured
    from app.embedded.up import prepare as run

    try:
        run(settings())
    except NotConfigured as error:
        refuse(str(error))


def settings(**options: Any) -> Settings:
    """What the environment says, and options where they are given."""
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        refuse("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()))


def refuse(sentence: str) -> NoReturn:
    """One sentence on the error output, and exit code 1."""
    typer.echo(f"finetuned: {sentence}", err=True)
    raise typer.Exit(1)


def main() -> None:
    commands()


if __name__ == "__main__":
    main()
