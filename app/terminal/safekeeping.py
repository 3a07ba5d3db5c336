"""`finetuned backup` and `finetuned restore`, told on the terminal."""

from collections.abc import Callable
from pathlib import Path

import typer
from sqlalchemy.exc import SQLAlchemyError

from app.backup import backup as backups
from app.backup import restore as restoring
from app.backup.snapshot import BackupError
from app.embedded.process import EmbeddedError
from app.settings import Settings
from app.terminal.outcome import Failure


def backup(settings: Settings, folder: Path) -> None:
    """Raises Failure."""
    _run(backups.backup, settings, folder)


def restore(settings: Settings, folder: Path) -> None:
    """Raises Failure."""
    _run(restoring.restore, settings, folder)


def _run(
    verb: Callable[[Settings, Path, Callable[[str], None]], None], settings: Settings, folder: Path
) -> None:
    try:
        verb(settings, folder.absolute(), typer.echo)
    except (BackupError, EmbeddedError) as error:
        raise Failure(str(error)) from None
    except SQLAlchemyError as error:
        raise Failure(f"The database does not answer ({type(error).__name__}).") from None
    except OSError as error:
        # The object store's errors are sentences, the system's a word and a file.
        raise Failure(f"{error.strerror}: {error.filename}" if error.strerror else str(error)) from None
