"""`finetuned backup`: all that is kept, of one moment, in a folder; the service goes on meanwhile.

    backup.json     what is in it, with the SHA-256 of each file; written last, so what has it is complete
    database.dump   the database, in PostgreSQL's custom format
    home/           the first API key, and the key that webhooks' secrets are made of
    storage/        files, checkpoints, models, by key

Base models are not in it: what came from the hub is fetched again.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from pydantic import SecretStr

from app.backup import objects, snapshot
from app.backup.snapshot import BackupError
from app.embedded import sockets
from app.embedded.postgres import ROLE, Postgres
from app.embedded.process import EmbeddedError
from app.embedded.up import only_one
from app.settings import Settings
from app.storage import open_store

FORMAT = 1
FACTS, DUMP, STORAGE, HOME = "backup.json", "database.dump", "storage", "home"
SECRETS = ("key", "webhook_key")
Say = Callable[[str], None]


@contextmanager
def private() -> Iterator[None]:
    """What is written meanwhile is for its owner's eyes only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@private()
def backup(settings: Settings, folder: Path, say: Say) -> None:
    """Raises BackupError, EmbeddedError, SQLAlchemyError where the database does not answer, OSError."""
    if folder.exists() and any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty: a backup is made into a new folder.")
    if not settings.home.is_dir():
        raise BackupError(f"There is no {settings.home}: nothing to back up.")
    folder.mkdir(parents=True, exist_ok=True)
    with reaching(settings) as settings, snapshot.held(settings) as moment:
        say("Dumping the database ...")
        snapshot.dump(settings, moment, folder / DUMP)
        say(f"Copying {len(moment.keys)} objects ...")
        copied, missing = _copy_objects(settings, moment.keys, folder / STORAGE)
    (folder / HOME).mkdir()
    for name in SECRETS:
        if (settings.home / name).exists():
            shutil.copyfile(settings.home / name, folder / HOME / name)
    if moment.signs and not (settings.home / "webhook_key").exists():
        say(
            f"There is no webhook_key in {settings.home}, so none is in the backup: keep that of the API's"
            " home beside it, or all webhooks' secrets must be rotated after a restore."
        )
    facts = {
        "format": FORMAT,
        "version": version("finetuned"),
        "schema": moment.revision,
        "made_at": int(time.time()),
        "dump_bytes": (folder / DUMP).stat().st_size,
        "dump_sha256": objects.sha256(folder / DUMP),
        "objects": copied,
        "missing": missing,
    }
    os.sync()
    written = folder / f"{FACTS}.new"
    written.write_text(json.dumps(facts, indent=1))
    written.rename(folder / FACTS)
    os.sync()
    size = sum(each.bytes for each in copied.values()) + (folder / DUMP).stat().st_size
    say(f"Backed up {len(copied)} files, {size:,} bytes in all, to {folder}.")
    for key in missing:
        say(f"Not there, though a row speaks of it: {key}")


def _copy_objects(
    settings: Settings, keys: list[str], folder: Path
) -> tuple[dict[str, objects.Copied], list[str]]:
    store = open_store(settings)
    copied: dict[str, objects.Copied] = {}
    missing: list[str] = []
    for key in keys:
        before = len(copied)
        for inner in objects.walk(store, key):
            with suppress(FileNotFoundError):  # a part of an upload that is refused goes even now
                copied[inner] = objects.copy_out(store, inner, folder)
        if len(copied) == before and not key.startswith("uploads/"):  # one that has no parts yet
            missing.append(key)
    return copied, missing


@contextmanager
def reaching(settings: Settings) -> Iterator[Settings]:
    """The settings with the database's URL: the one given, that of an `up` that runs, or that of a server
    started for this."""
    if settings.database_url is not None:
        yield settings
        return
    data, record = settings.home / "postgres", settings.home / "sockets"
    with ExitStack() as held:
        try:
            held.enter_context(only_one(settings.home))
        except EmbeddedError:  # it is up
            if not record.exists():
                raise BackupError("finetuned is just starting or ending: try again in a moment.") from None
            yield _with_url(settings, Postgres(data, Path(record.read_text())).url(ROLE, ROLE))
            return
        if not data.is_dir():
            raise BackupError(f"There is no database in {settings.home}: nothing to back up.")
        yield held.enter_context(served(settings))


@contextmanager
def served(settings: Settings) -> Iterator[Settings]:
    """A database server of the home's own, for as long as the context lasts."""
    record = settings.home / "sockets"
    server = Postgres(settings.home / "postgres", sockets.create(record))
    try:
        yield _with_url(settings, server.start())
    finally:
        server.stop()
        sockets.remove(record)


def _with_url(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"database_url": SecretStr(url)})
