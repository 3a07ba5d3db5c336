"""Models in memory: loaded when asked for, kept while there is room, the least recently used leaves first.

A LoRA model takes the room of its update alone, where its base can be shared (see adapter.py).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import torch

from app import seal as seals
from app.errors import NotFound, ServiceError, Unavailable
from app.storage import MANIFEST
from worker.generation import adapter
from worker.generation.adapter import NotShared
from worker.generation.model import Model, Precision, Variant, load, read_variant, weigh

log = logging.getLogger(__name__)

# Seconds to wait for room that running answers take, before 503 is said.
ROOM_TIMEOUT = 30.0

Locate: TypeAlias = Callable[[str], Path]
# A source, and its files' names, sizes and times: a folder that was written anew is another model.
Key: TypeAlias = tuple[str, tuple[tuple[str, int, int], ...]]


Loaded = TypeVar("Loaded", bound=Model | Variant)


@dataclass(frozen=True)
class _Work(Generic[Loaded]):
    """What a slot is filled with, and about how many bytes that will take."""

    name: str
    expected: Callable[[], int]
    read: Callable[[], Loaded]
    waits: bool = True  # for its turn, and for room where all that is in memory is in use


class _Slot(Generic[Loaded]):
    """A model, or the update of one, that is in memory or on its way there."""

    def __init__(self, loading: asyncio.Task[Loaded], size: int) -> None:
        self.loading = loading
        self.size = size
        self.users = 0

    @property
    def idle(self) -> bool:
        return self.users == 0 and self.loading.done()


class LoadedModels:
    """All calls come from one event loop; files are read on one thread beside it, so that loading a model
    keeps neither the loop nor the engine from answering for the others."""

    def __init__(
        self, locate: Locate, memory_bytes: int, device: torch.device, precision: Precision = "auto"
    ) -> None:
        self._locate = locate
        self._memory_bytes = memory_bytes
        self._device = device
        self._precision: Precision = precision
        self._slots: dict[Key, _Slot[Any]] = {}  # least recently used first
        self._whole: set[Key] = set()  # LoRA models that were found not to share their base
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._loading = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def borrow(
        self, source: str, name: str, base: str | None = None, seal: str | None = None
    ) -> AsyncIterator[Model]:
        """The model of `source`, which stays in memory at least until it is given back; `base` is the source
        of the model that it was trained from, `seal` what the folder must have (app/seal.py).

        Raises NotFound where its folder is gone, Unavailable where no room can be made, ServiceError where it
        cannot be read or is another.
        """
        key, folder = await asyncio.to_thread(self._identify, source, name, seal)
        async with AsyncExitStack() as held:
            model: Model | None = None
            # int8 packs the base's layers, and an update belongs to exact ones.
            if base is not None and self._precision != "int8" and adapter.is_in(folder):
                model = await self._share(held, key, folder, name, base)
            if model is None:
                model = await held.enter_async_context(self._hold(key, self._model(folder, name)))
            yield model

    async def _share(
        self, held: AsyncExitStack, key: Key, folder: Path, name: str, base: str
    ) -> Model | None:
        """The model as an update of its base, both held; None where it must be loaded whole."""
        try:
            base_key, base_folder = await asyncio.to_thread(self._identify, base, name)
        except ServiceError:
            return None
        # Not to outlive the base: another base of that name is another key, for another proof.
        both = (f"{base} + {key[0]}", base_key[1] + key[1])
        if both in self._whole:
            return None
        async with AsyncExitStack() as holding:
            try:
                whole = await holding.enter_async_context(
                    self._hold(base_key, self._model(base_folder, base))
                )
                variant = await holding.enter_async_context(
                    self._hold(both, self._variant(folder, base_folder, name, whole))
                )
            except Unavailable:
                raise
            except (NotShared, ServiceError) as why:
                log.warning("%s is loaded whole: %s", key[0], why)
                self._whole.add(both)
                return None
            held.push_async_callback(holding.pop_all().aclose)
            return whole.varied(name, variant)

    @asynccontextmanager
    async def _hold(self, key: Key, work: _Work[Loaded]) -> AsyncIterator[Loaded]:
        slot = self._slots.pop(key, None) or self._start(key, work)
        self._slots[key] = slot  # the most recently used is last
        slot.users += 1
        try:
            # Shielded: somebody who leaves does not stop the load for the others.
            yield await asyncio.shield(slot.loading)
        finally:
            slot.users -= 1
            self._freed.set()

    def listed(self) -> list[dict[str, object]]:
        """What is in memory, the least recently used first."""
        return [
            {"source": key[0], "bytes": slot.size, "users": slot.users, "loaded": slot.loading.done()}
            for key, slot in self._slots.items()
        ]

    def close(self) -> None:
        for slot in self._slots.values():
            slot.loading.cancel()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _identify(self, source: str, name: str, seal: str | None = None) -> tuple[Key, Path]:
        try:
            folder = self._locate(source)
            if seal is not None and not seals.fits(seal, (folder / MANIFEST).read_bytes()):
                log.error("%s has another manifest than the one that was recorded", source)
                raise _not_loadable(name)
            files = [
                (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())
            ]
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise _gone(name, source) from error
        return (source, tuple(files)), folder

    def _model(self, folder: Path, name: str) -> _Work[Model]:
        return _Work(
            name,
            expected=lambda: weigh(folder, self._device),
            read=lambda: load(folder, name, self._device, self._precision),
        )

    def _variant(self, folder: Path, base_folder: Path, name: str, whole: Model) -> _Work[Variant]:
        return _Work(
            name,
            expected=lambda: adapter.weigh(folder),
            read=lambda: read_variant(folder, base_folder, whole),
            waits=False,  # who loads it holds the base, and somebody may be waiting for that very room
        )

    def _start(self, key: Key, work: _Work[Loaded]) -> _Slot[Loaded]:
        slot: _Slot[Loaded] = _Slot(asyncio.create_task(self._load(key, work)), size=0)
        slot.loading.add_done_callback(lambda task: self._forget_failed(key, task))
        return slot

    async def _load(self, key: Key, work: _Work[Loaded]) -> Loaded:
        async with self._loading if work.waits else nullcontext():
            expected = work.expected()
            await self._make_room(expected, work.waits)
            self._slots[key].size = expected
            loop = asyncio.get_running_loop()
            try:
                loaded = await loop.run_in_executor(self._loader, work.read)
            except FileNotFoundError as error:
                raise _gone(work.name, key[0]) from error
            except NotShared:
                raise
            except Exception as error:
                log.exception("%s cannot be loaded", key[0])
                raise _not_loadable(work.name) from error
            self._slots[key].size = loaded.size
            log.info("loaded %s: %.0f MB", key[0], loaded.size / 1e6)
            return loaded

    async def _make_room(self, needed: int, waits: bool) -> None:
        """Unload until `needed` bytes fit, or all that is idle where it `waits` not; a model larger than the
        whole budget is let in alone."""
        deadline = asyncio.get_running_loop().time() + ROOM_TIMEOUT
        while self._used() and self._used() + needed > self._memory_bytes:
            oldest = next((key for key, slot in self._slots.items() if slot.idle and slot.size), None)
            if oldest is not None:
                log.info("unloaded %s", oldest[0])
                del self._slots[oldest]
                continue
            if not waits:
                return
            self._freed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._freed.wait()
            except TimeoutError as error:
                raise Unavailable(
                    "The generator's memory is taken by models that are answering; try again.",
                    code="generator_memory_full",
                ) from error

    def _used(self) -> int:
        return sum(slot.size for slot in self._slots.values())

    def _forget_failed(self, key: Key, task: asyncio.Task[Any]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._slots.pop(key, None)


def _not_loadable(name: str) -> ServiceError:
    return ServiceError(
        f"The model {name!r} cannot be loaded: its folder is damaged or of an unsupported kind.",
        param="model",
        code="model_not_loadable",
    )


def _gone(name: str, source: str) -> NotFound:
    said = f"The model {name!r} does not exist any more."
    if source.startswith("hub:"):
        said = (
            f"The base model {name!r} was never fetched to this machine: a job that trains from it"
            f" fetches it, or put its folder into FINETUNED_BASE_MODELS."
        )
    return NotFound(said, param="model", code="model_not_found")
