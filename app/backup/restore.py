"""`finetuned restore`: a backup becomes a home, and its database, whole or not at all.

Everything is made beside the home, under another name, and gets its name at the end. A running job goes
on from its last checkpoint once the service is up: its lease is long over by then.
"""

import json
import os
import secrets
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from app.backup import objects, snapshot
from app.backup.backup import DUMP, FACTS, FORMAT, HOME, SECRETS, STORAGE, Say, served
from app.backup.objects import Copied
from app.backup.snapshot import BackupError
from app.database import database_url, revisions
from app.settings import Settings
from app.storage import open_store


def restore(settings: Settings, folder: Path, say: Say) -> None:
    """Raises BackupError, EmbeddedError, SQLAlchemyError, OSError; whichever it is, the home is as it was."""
    facts = _read(folder)
    home = settings.home
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise BackupError(f"{home} is not empty: restore into a new home, given by FINETUNED_HOME or --home.")
    os.umask(0o077)
    made = home.with_name(f".{home.name}-restoring-{secrets.token_hex(4)}")
    made.mkdir(mode=0o700, parents=True)
    try:
        _fill(settings.model_copy(update={"home": made}), folder, facts, say)
        if home.exists():
            home.rmdir()
        made.rename(home)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    say(f"Restored to {home}: start it with `finetuned up --home {home}`.")


def _read(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
    except FileNotFoundError:
        raise BackupError(f"{folder} is no backup, or one that was not finished: no {FACTS} in it.") from None
    if facts.get("format") != FORMAT or facts["schema"] not in revisions():
        raise BackupError(
            f"{folder} was made by a newer release ({facts.get('version')}): restore it with that."
        )
    if (folder / DUMP).stat().st_size != facts["dump_bytes"]:
        raise BackupError(f"The backup is damaged: {folder / DUMP} is not as large as it was.")
    return facts


def _fill(settings: Settings, folder: Path, facts: dict[str, Any], say: Say) -> None:
    given = settings.database_url is not None
    if given:
        _refuse_used(settings)
    say(f"Copying {len(facts['objects'])} files ...")
    store = open_store(settings)
    for key, expected in facts["objects"].items():
        objects.copy_in(store, key, folder / STORAGE, Copied(*expected))
    for name in SECRETS:
        if (folder / HOME / name).exists():
            shutil.copyfile(folder / HOME / name, settings.home / name)
    os.sync()
    say("Loading the database ...")
    with nullcontext(settings) if given else served(settings) as reached:
        snapshot.load(reached, folder / DUMP)


def _refuse_used(settings: Settings) -> None:
    engine = create_engine(database_url(settings))
    try:
        with engine.connect() as connection:
            used = connection.scalar(
                text("SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace")
            )
    finally:
        engine.dispose()
    if used:
        raise BackupError("The database of DATABASE_URL is not empty: restore into a new one.")
