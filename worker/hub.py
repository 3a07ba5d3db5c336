"""Fetching a base model from the Hugging Face hub: safetensors, configuration and tokenizer; never code.

Done by the worker, once a model; the trainer and the generator only ever read the folder. A branch moves, so
it is a commit that is fetched: the one a job began with is the one it goes on with.
"""

import errno
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from app import model_folder
from app.catalogue import hub_folder
from app.model_folder import UnusableModel
from app.settings import Settings

log = structlog.get_logger()
ABANDONED_AFTER = 24 * 3600.0  # seconds: nobody downloads into it any more
# Patterns match across folders, where other formats of the same weights may lie.
WANTED = ["model.safetensors", "model-*.safetensors", "*.json", "merges.txt", "vocab.txt", "*.jinja"]
UNWANTED = ["*.py", "*/*"]
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = ".revision"  # the file that says which commit a folder is


class HubUnreachable(UnusableModel):
    """The hub does not answer; it may in a while."""


@dataclass(frozen=True)
class Fetched:
    """A model's folder; `revision` is the hub's commit, None where an earlier release kept none."""

    folder: Path
    revision: str | None


def fetch(hub_id: str, settings: Settings, revision: str | None = None) -> Fetched:
    """The model's folder, fetched when it is not there yet; of that commit, if one is given.

    Raises UnusableModel with what to do: the name is unknown, or we do not run the model; HubUnreachable
    where trying again may help.
    """
    if revision is not None and not COMMIT.fullmatch(revision):
        raise UnusableModel(f"{revision[:100]!r} is no commit of the hub.")
    folder = hub_folder(hub_id, settings)
    if (folder / "config.json").is_file() and revision not in (None, _revision_of(folder)):
        folder = folder.with_name(f"{folder.name}@{revision}")  # what is there came from another commit
    if not (folder / "config.json").is_file():
        _download(hub_id, folder, revision)
    model_folder.check(folder)
    return Fetched(folder, _revision_of(folder))


def _revision_of(folder: Path) -> str | None:
    try:
        found = (folder / REVISION).read_text().strip()
    except OSError:
        return None
    return found if COMMIT.fullmatch(found) else None


def _download(hub_id: str, folder: Path, revision: str | None) -> None:
    temporary = folder.with_name(f".fetching-{folder.name}-{secrets.token_hex(4)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".fetching-{folder.name}-*"):
        if time.time() - left.stat().st_mtime > ABANDONED_AFTER:
            shutil.rmtree(left, ignore_errors=True)
    try:
        _ask(hub_id, lambda hub: _fill(hub, hub_id, temporary, revision))
        model_folder.check(temporary)
        temporary.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # else another worker was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(hub: Any, hub_id: str, folder: Path, revision: str | None) -> None:
    """One commit's files; its config.json first, for what is not run need not be fetched."""
    commit = revision or hub.HfApi().model_info(hub_id, timeout=10).sha
    if not COMMIT.fullmatch(str(commit)):
        raise UnusableModel("the hub names no commit of it.")
    for wanted in (["config.json"], WANTED):
        hub.snapshot_download(
            hub_id,
            revision=commit,
            local_dir=folder,
            allow_patterns=wanted,
            ignore_patterns=UNWANTED,
            etag_timeout=10,
        )
        model_folder.check_config(folder)
    (folder / REVISION).write_text(commit)


def _ask(hub_id: str, question: Callable[[Any], None]) -> None:
    # Imported here: it takes a second, and most workers never fetch.
    import httpx2
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    instead = f"put its folder below FINETUNED_BASE_MODELS and use that name instead of {hub_id!r}."
    try:
        question(huggingface_hub)
    except GatedRepoError as error:
        raise UnusableModel(
            f"the hub wants a token for it; set HF_TOKEN for the worker, or {instead}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UnusableModel("the Hugging Face hub has no such model; check the name.") from error
    except (OSError, HfHubHTTPError, httpx2.HTTPError, RuntimeError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UnusableModel("the disk is too full to fetch it; make room and try again.") from error
        log.warning("hub_unreachable", model=hub_id, error=str(error)[:300])
        raise HubUnreachable(
            f"the Hugging Face hub cannot be reached from this machine ({type(error).__name__});"
            f" try again with a connection, or {instead}"
        ) from error
