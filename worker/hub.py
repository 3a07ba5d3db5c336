"""Fetching a base model from the Hugging Face hub: safetensors, configuration and tokenizer; never code.

Done by the worker, once a model; the trainer and the generator only ever read the folder.
"""

import errno
import secrets
import shutil
import time
from pathlib import Path

import structlog

from app.catalogue import UnusableModel, check_folder, hub_folder
from app.settings import Settings

log = structlog.get_logger()
ABANDONED_AFTER = 24 * 3600.0  # seconds: nobody downloads into it any more
WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "merges.txt", "vocab.txt"]


class HubUnreachable(UnusableModel):
    """The hub does not answer; it may in a while."""


def fetch(hub_id: str, settings: Settings) -> Path:
    """The model's folder, fetched when it is not there yet.

    Raises UnusableModel with what to do: the name is unknown, or we do not run the model; HubUnreachable
    where trying again may help.
    """
    folder = hub_folder(hub_id, settings)
    if not (folder / "config.json").is_file():
        _download(hub_id, folder)
    check_folder(folder)
    return folder


def _download(hub_id: str, folder: Path) -> None:
    # Imported here: it takes a second, and most workers never fetch.
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    temporary = folder.with_name(f".fetching-{folder.name}-{secrets.token_hex(4)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".fetching-{folder.name}-*"):
        if time.time() - left.stat().st_mtime > ABANDONED_AFTER:
            shutil.rmtree(left, ignore_errors=True)
    instead = f"put its folder below FINETUNED_BASE_MODELS and use that name instead of {hub_id!r}."
    try:
        huggingface_hub.snapshot_download(
            hub_id, local_dir=temporary, allow_patterns=WANTED, ignore_patterns=["*.py"], etag_timeout=10
        )
    except GatedRepoError as error:
        raise UnusableModel(
            f"the hub wants a token for it; set HF_TOKEN for the worker, or {instead}"
        ) from error
    except RepositoryNotFoundError as error:
        raise UnusableModel("the Hugging Face hub has no such model; check the name.") from error
    except (OSError, HfHubHTTPError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise UnusableModel("the disk is too full to fetch it; make room and try again.") from error
        log.warning("hub_unreachable", model=hub_id, error=str(error)[:300])
        raise HubUnreachable(
            f"the Hugging Face hub cannot be reached from this machine ({type(error).__name__});"
            f" try again with a connection, or {instead}"
        ) from error
    try:
        temporary.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():  # else another worker was faster
            raise
        shutil.rmtree(temporary, ignore_errors=True)
