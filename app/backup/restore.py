"""`finetuned restore`: a backup becomes a home, and its database, whole or not at all.

Everything is made beside the home, under another name, and gets its name at the end; in a home that is a
volume, which cannot be renamed, inside of it. A running job goes on from its last checkpoint once the service
is up: its lease is long over by then.
"""

import fcntl
import json
import os
import secrets
import shutil
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, text

from app.backup import objects, snapshot
from app.backup.backup import DUMP, FACTS, FORMAT, HOME, SECRETS, STORAGE, Say, private, served
from app.backup.objects import Copied
from app.backup.snapshot import BackupError
from app.database import database_url, revisions
from app.litter import KINDS
from app.settings import Settings
from app.storage import Store, open_store


@private()
def restore(settings: Settings, folder: Path, say: Say) -> None:
    """Raises BackupError, EmbeddedError, SQLAlchemyError, OSError; whichever it is, the home is as it was,
    and so is the bucket."""
    facts = _read(folder)
    home = settings.home
    volume = home.is_dir() and (os.path.ismount(home) or not os.access(home.parent, os.W_OK))
    where, begins = home if volume else home.parent, f".{home.name}-restoring-"
    _remove_left(where, begins)
    if home.exists() and (not home.is_dir() or {path.name for path in home.iterdir()} - {"lost+found"}):
        raise BackupError(f"{home} is not empty: restore into a new home, given by FINETUNED_HOME or --home.")
    made = where / f"{begins}{secrets.token_hex(4)}"
    made.mkdir(mode=0o700, parents=True)
    lock = os.open(made, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _fill(settings.model_copy(update={"home": made}), folder, facts, say)
        if volume:
            for inner in made.iterdir():
                inner.rename(home / inner.name)
        else:
            if home.exists():
                home.rmdir()
            made.rename(home)
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)
    say(f"Restored to {home}: start it as ever, or with `finetuned up --home {home}`.")


def _remove_left(where: Path, begins: str) -> None:
    """What a restore made that was killed; the kernel lets go of its lock, however it ended."""
    for left in where.iterdir() if where.is_dir() else ():
        if left.name.startswith(begins):
            lock = os.open(left, os.O_RDONLY)
            with suppress(BlockingIOError):  # one that is at work
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            os.close(lock)


def _read(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
        if facts["format"] != FORMAT or facts["schema"] not in revisions():
            raise BackupError(
                f"{folder} was made by a newer release ({facts.get('version')}): restore it with that."
            )
        size, digest = facts["dump_bytes"], facts.get("dump_sha256")  # which the first release left out
    except FileNotFoundError:
        raise BackupError(f"{folder} is no backup, or one that was not finished: no {FACTS} in it.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackupError(f"The backup is damaged: {folder / FACTS} cannot be read.") from None
    dump = folder / DUMP
    if not dump.is_file() or dump.stat().st_size != size:
        raise BackupError(f"The backup is damaged: {dump} is not as large as it was.")
    if digest is not None and objects.sha256(dump) != digest:
        raise BackupError(f"The backup is damaged: {dump} is not what was backed up.")
    return facts


def _fill(settings: Settings, folder: Path, facts: dict[str, Any], say: Say) -> None:
    given = settings.database_url is not None
    if given:
        _refuse_used(settings)
    store = open_store(settings)
    if settings.store is not None:
        _refuse_used_bucket(settings.store, store)
    say(f"Copying {len(facts['objects'])} files ...")
    with ExitStack() as undo:
        for key, expected in facts["objects"].items():
            if settings.store is not None:
                undo.callback(_take_back, store, key)
            objects.copy_in(store, key, folder / STORAGE, Copied(*expected))
        _load(settings, folder, given, say)
        undo.pop_all()


def _load(settings: Settings, folder: Path, given: bool, say: Say) -> None:
    for name in SECRETS:
        if (folder / HOME / name).exists():
            shutil.copyfile(folder / HOME / name, settings.home / name)
    os.sync()
    say("Loading the database ...")
    with nullcontext(settings) if given else served(settings) as reached:
        snapshot.load(reached, folder / DUMP)


def _take_back(store: Store, key: str) -> None:
    with suppress(OSError):  # what failed may be the bucket itself
        store.delete(key)


def _refuse_used_bucket(name: str, store: Store) -> None:
    """Another service's objects would be litter to this one, and removed after a day."""
    used = [folder for folder in KINDS if store.names(folder)]
    if used:
        raise BackupError(
            f"{name} is not empty ({used[0]}/): restore into another bucket, or below another prefix of it,"
            " named by FINETUNED_STORE."
        )


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
