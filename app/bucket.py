"""The store that is a bucket of an S3-compatible service. Keys are the same relative paths as in a folder.

What a folder promises is kept: an object is put whole or not at all; of a folder its manifest is put last,
and deleted first, and nobody reads a folder but through its manifest, each file checked against the SHA-256
that stands there. Bytes travel in pieces, so that memory does not grow with them.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import obstore
import structlog
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from app.account import REFUSALS, code_of, credentials, refusal
from app.copies import Copies
from app.settings import Settings
from app.storage import MANIFEST, Damaged, Store, StoreAway, Upload, refuse_low_space

if TYPE_CHECKING:
    from obstore import ObjectMeta

log = structlog.get_logger()
PIECE = 8 * 1024 * 1024  # bytes of one request, up or down
AT_ONCE = 4  # pieces of an upload on their way together: what it takes of memory
LINK_LIFE = timedelta(minutes=5)
# A restart of the service, and the odd request that is lost, are waited for; what takes longer is told.
RETRIES: Any = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=20),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2},
}
CLIENT: Any = {"connect_timeout": "3s", "timeout": "60s", "allow_http": True}
QUICK: Any = {**CLIENT, "timeout": "2s", "connect_timeout": "2s"}
ABANDONED_AFTER = 24 * 3600.0  # seconds; no upload takes so long
PROBE = "probe"  # an object written at the start


class Bucket(Store):
    """One bucket, or what lies below a prefix of one. `root` is for what programs write on this machine."""

    def __init__(self, settings: Settings) -> None:
        self.root = settings.storage_folder
        self._settings = settings
        self._copies = Copies(settings.copies_folder, settings.store_cache_bytes)
        self._remote = self._client(settings.store_endpoint)
        public = settings.store_public_endpoint
        self._public = None if public is None else self._client(public)
        self._once = self._client(settings.store_endpoint, {"max_retries": 0}, QUICK)

    def _client(self, endpoint: str | None, retries: Any = RETRIES, client: Any = CLIENT) -> S3Store:
        bucket, _, prefix = (self._settings.store or "").removeprefix("s3://").partition("/")
        where: Any = {"region": self._settings.store_region, **credentials(self._settings)}
        if endpoint is not None:
            where["endpoint"] = endpoint.rstrip("/")
        below = prefix.strip("/") or None
        return S3Store(bucket, prefix=below, config=where, client_options=client, retry_config=retries)

    @property
    def incoming(self) -> Path:
        """Where a file lies on this machine until it is sent."""
        return self.root / "incoming"

    def probe(self, write: bool = True) -> None:
        if write:
            self.put(PROBE, b"finetuned\n")
        with contextlib.suppress(FileNotFoundError):
            self.get(PROBE)

    def answers(self) -> bool:
        with contextlib.suppress(BaseError):
            with contextlib.suppress(FileNotFoundError):
                obstore.head(self._once, PROBE)
            return True
        return False

    def check(self, key: str) -> None:
        parts = key.split("/")
        if not all(parts) or {".", ".."}.intersection(parts) or "\0" in key or "\\" in key:
            raise ValueError(f"not a key of this store: {key!r}")

    def upload(self, key: str, keep: bool = True) -> Upload:
        self.check(key)
        return _Sent(self, key, keep)

    def put(self, key: str, data: bytes) -> None:
        self.check(key)
        with self._told(key, missing=True):
            obstore.put(self._remote, key, data)

    def send(self, path: Path, key: str) -> None:
        """A file as an object, in parts; it appears with the last one."""
        self.check(key)
        path.stat()  # its own absence is not the bucket's
        with self._told(key, missing=True):
            obstore.put(self._remote, key, path, chunk_size=PIECE, max_concurrency=AT_ONCE)

    def adopt(self, folder: Path, key: str) -> None:
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        names.remove(MANIFEST)
        # Where a folder is there already, nobody may take a mixture of both for one of them.
        self._remove([f"{key}/{MANIFEST}"])
        for name in names:
            self.send(folder / name, f"{key}/{name}")
        self.send(folder / MANIFEST, f"{key}/{MANIFEST}")
        self._copies.admit(key, folder)

    def has(self, key: str) -> bool:
        try:
            self._head(key)
        except FileNotFoundError:
            return False
        return True

    def _head(self, key: str) -> "ObjectMeta":
        self.check(key)
        with self._told(key):
            return obstore.head(self._remote, key)

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        facts = self._head(key)
        end = facts["size"] if length is None else min(facts["size"], start + length)
        for at in range(start, end, PIECE):
            span = (at, min(end, at + PIECE))
            with self._told(key):
                # Of the same object to the end, should it be replaced meanwhile.
                given = obstore.get(self._remote, key, options={"range": span, "if_match": facts["e_tag"]})
                piece = bytes(given.bytes())
            yield piece

    def get(self, key: str) -> bytes:
        self.check(key)
        with self._told(key):
            return bytes(obstore.get(self._remote, key).bytes())

    def names(self, folder: str) -> list[str]:
        self.check(folder)
        with self._told(folder):
            found = obstore.list_with_delimiter(self._remote, folder)
        paths = [*found["common_prefixes"], *(facts["path"] for facts in found["objects"])]
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def age(self, key: str) -> float:
        made = [facts["last_modified"] for facts in self._below(key)]
        with contextlib.suppress(FileNotFoundError):
            made.append(self._head(key)["last_modified"])
        return (datetime.now(UTC) - max(made)).total_seconds() if made else 0.0

    def _below(self, key: str) -> "list[ObjectMeta]":
        self.check(key)
        with self._told(key):
            return [facts for batch in obstore.list(self._remote, key) for facts in batch]

    def delete(self, key: str) -> None:
        """The manifest first: from then on the folder is no folder, whatever is left of it."""
        self._copies.forget(key)
        below = [facts["path"] for facts in self._below(key)]
        self._remove([path for path in below if path == f"{key}/{MANIFEST}"])
        self._remove([path for path in below if path != f"{key}/{MANIFEST}"])
        self._remove([key])

    def _remove(self, keys: list[str]) -> None:
        with contextlib.suppress(FileNotFoundError), self._told(keys[0] if keys else ""):
            for at in range(0, len(keys), 1000):
                obstore.delete(self._remote, keys[at : at + 1000])

    def place(self, key: str) -> Path | None:
        return None

    def link(self, key: str) -> str | None:
        self.check(key)
        if self._public is None:
            return None
        with self._told(key):
            return obstore.sign(self._public, "GET", key, LINK_LIFE)

    def hold(self, key: str, sha256: str) -> AbstractContextManager[Path]:
        return self._copies.hold(key, lambda target: self._download(key, target, sha256))

    def hold_folder(self, key: str) -> AbstractContextManager[Path]:
        return self._copies.hold(key, lambda target: self._download_folder(key, target))

    def _download_folder(self, key: str, target: Path) -> None:
        text = self.get(f"{key}/{MANIFEST}")
        try:
            files = {name: str(facts["sha256"]) for name, facts in json.loads(text)["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{key}/{MANIFEST}: {type(error).__name__}") from None
        for name, digest in files.items():
            self.check(f"{key}/{name}")
            path = target.joinpath(*PurePosixPath(name).parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._download(f"{key}/{name}", path, digest)
        target.mkdir(exist_ok=True)
        (target / MANIFEST).write_bytes(text)

    def _download(self, key: str, target: Path, sha256: str) -> None:
        """Raises Damaged. The copy is as old as the object, by which a model is known to be the same."""
        digest = hashlib.sha256()
        with target.open("xb") as file:
            for piece in self.read(key):
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise Damaged(f"{key}: its SHA-256 is not the one that was recorded")
        made = self._head(key)["last_modified"].timestamp()
        os.utime(target, (made, made))

    def scratch(self, key: str) -> Path:
        self.check(key)
        return self.root / key

    def clear(self, key: str) -> None:
        shutil.rmtree(self.scratch(key), ignore_errors=True)

    def sweep(self) -> None:
        self._copies.sweep()
        # What a process left that was killed while it received a file.
        for left in self.incoming.glob("*") if self.incoming.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > ABANDONED_AFTER:
                    left.unlink()

    def refuse_low_space(self, least: int) -> None:
        """What is received lies on this machine until it is sent on."""
        refuse_low_space(self.root, least)

    def keep(self, key: str, path: Path) -> None:
        """What was sent is likely to be read here next."""
        self._copies.admit(key, path)

    @contextlib.contextmanager
    def _told(self, key: str, missing: bool = False) -> Iterator[None]:
        """The client's exceptions as ours. `missing`: that nothing is found means that there is no bucket."""
        try:
            yield
        except FileNotFoundError as error:
            code = code_of(error)
            if missing or code == "NoSuchBucket":
                raise refusal(self._settings, "NoSuchBucket") from None
            raise FileNotFoundError(key) from None
        except BaseError as error:
            code = code_of(error)
            if code is None and isinstance(error, PermissionDeniedError | UnauthenticatedError):
                code = "AccessDenied"
            log.warning("store_failed", key=key, code=code, error=str(error).partition("\n")[0][:300])
            if code in REFUSALS:
                raise refusal(self._settings, code) from None
            raise StoreAway(f"The object store does not answer ({code or 'no connection'}).") from None


class _Sent(Upload):
    """Written to this machine's disk first: what reads a file as a whole needs it there, and it can be sent
    again when the store was away."""

    def __init__(self, bucket: Bucket, key: str, keep: bool) -> None:
        super().__init__(bucket.incoming / secrets.token_hex(12))
        self._bucket, self._key, self._keep = bucket, key, keep

    def commit(self) -> None:
        """On return the object is in the bucket. Raises StoreAway."""
        self._file.flush()
        self._bucket.send(self._temporary, self._key)
        if self._keep:
            self._bucket.keep(self._key, self._temporary)
