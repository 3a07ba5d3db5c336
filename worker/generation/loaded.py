"""Models in memory: loaded when asked for, kept while there is room, the least recently used leaves first."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import torch

from app.errors import NotFound, ServiceError, Unavailable
from worker.generation.model import Model, Precision, load, weigh

log = logging.getLogger(__name__)

# Seconds to wait for room that running answers take, before 503 is said.
ROOM_TIMEOUT = 30.0

Locate: TypeAlias = Callable[[str], Path]
# A source, and its files' names, sizes and times: a folder that was written anew is another model.
Key: TypeAlias = tuple[str, tuple[tuple[str, int, int], ...]]


class _Slot:
    """A model that is in memory or on its way there."""

    def __init__(self, loading: asyncio.Task[Model], size: int) -> None:
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
        self._slots: dict[Key, _Slot] = {}  # least recently used first
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._loading = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def borrow(self, source: str, name: str) -> AsyncIterator[Model]:
        """The model of `source`, which stays in memory at least until it is given back.

        Raises NotFound where its folder is gone, Unavailable where no room can be made, ServiceError where it
        cannot be read.
        """
        key, folder = await asyncio.to_thread(self._identify, source, name)
        slot = self._slots.pop(key, None) or self._start(key, folder, name)
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

    def _identify(self, source: str, name: str) -> tuple[Key, Path]:
        try:
            folder = self._locate(source)
            files = [
                (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())
            ]
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise _gone(name, source) from error
        return (source, tuple(files)), folder

    def _start(self, key: Key, folder: Path, name: str) -> _Slot:
        slot = _Slot(asyncio.create_task(self._load(key, folder, name)), size=0)
        slot.loading.add_done_callback(lambda task: self._forget_failed(key, task))
        return slot

    async def _load(self, key: Key, folder: Path, name: str) -> Model:
        async with self._loading:
            expected = weigh(folder, self._device)
            await self._make_room(expected)
            self._slots[key].size = expected
            loop = asyncio.get_running_loop()
            try:
                model = await loop.run_in_executor(
                    self._loader, load, folder, name, self._device, self._precision
                )
            except FileNotFoundError as error:
                raise _gone(name, key[0]) from error
            except Exception as error:
                log.exception("%s cannot be loaded", folder)
                raise ServiceError(
                    f"The model {name!r} cannot be loaded: its folder is damaged or of an unsupported kind.",
                    param="model",
                    code="model_not_loadable",
                ) from error
            self._slots[key].size = model.size
            log.info("loaded %s: %.0f MB", key[0], model.size / 1e6)
            return model

    async def _make_room(self, needed: int) -> None:
        """Unload until `needed` bytes fit; a model larger than the whole budget is let in alone."""
        deadline = asyncio.get_running_loop().time() + ROOM_TIMEOUT
        while self._used() and self._used() + needed > self._memory_bytes:
            oldest = next((key for key, slot in self._slots.items() if slot.idle and slot.size), None)
            if oldest is not None:
                log.info("unloaded %s", oldest[0])
                del self._slots[oldest]
                continue
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

    def _forget_failed(self, key: Key, task: asyncio.Task[Model]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._slots.pop(key, None)


def _gone(name: str, source: str) -> NotFound:
    said = f"The model {name!r} does not exist any more."
    if source.startswith("hub:"):
        said = (
            f"The base model {name!r} was never fetched to this machine: a job that trains from it"
            f" fetches it, or put its folder into FINETUNED_BASE_MODELS."
        )
    return NotFound(said, param="model", code="model_not_found")
