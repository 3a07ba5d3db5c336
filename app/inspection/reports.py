"""Reports of whole files: made once for a file and a model, kept beside what is encoded of the file."""

import asyncio
import hashlib
import json
from typing import Any

import structlog

from app.errors import ServiceError, TooMany
from app.inspection.findings import VERSION
from app.inspection.inspector import Inspector
from app.storage import Store

log = structlog.get_logger()
SECONDS = 900  # for the scan's own limit, the tokens and the validation file
WAITING = 32  # more reports than these are refused for now
JsonObject = dict[str, Any]


def key(question: JsonObject, files: list[str], shas: list[str], stamp: object) -> str:
    """Where in the store a report lies: in a folder that goes with its files (app.purge)."""
    asked = {**question, "shas": shas, "model": stamp, "version": VERSION}
    for place in ("path", "folder", "validation"):
        asked.pop(place, None)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
    return f"cache/{'+'.join(files)}/report-{digest}.json"


class Reports:
    """Makes them, one at a time, also when those who asked have gone."""

    def __init__(self, inspector: Inspector, store: Store) -> None:
        self._inspector, self._store = inspector, store
        self._turn = asyncio.Semaphore(1)
        self._making: dict[str, asyncio.Task[JsonObject]] = {}

    async def is_kept(self, key: str) -> bool:
        """Whether it is there, or is being made."""
        return key in self._making or await asyncio.to_thread(self._store.has, key)

    async def get(self, key: str, question: JsonObject, wait: float) -> JsonObject | None:
        """The report; None when it is being made after `wait` seconds. Raises InvalidRequest, TooMany."""
        if (kept := await asyncio.to_thread(read, self._store, key)) is not None:
            return kept
        task = self._making.get(key)
        if task is None:
            if len(self._making) >= WAITING:
                raise TooMany("Too many reports are being made; try again in a while.")
            task = self._making[key] = asyncio.create_task(self._make(key, question))
            task.add_done_callback(lambda done: self._forget(key, done))
        done, _ = await asyncio.wait([task], timeout=wait)
        return task.result() if done else None

    async def _make(self, key: str, question: JsonObject) -> JsonObject:
        async with self._turn:
            report = await self._inspector.ask("report", SECONDS, **question)
        await asyncio.to_thread(write, self._store, key, report)
        return report

    def _forget(self, key: str, task: "asyncio.Task[JsonObject]") -> None:
        self._making.pop(key, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, ServiceError):
            log.error("report_failed", key=key, exc_info=error)

    async def close(self) -> None:
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def read(store: Store, key: str) -> JsonObject | None:
    try:
        found: JsonObject = json.loads(store.get(key))
    except (OSError, ValueError):
        return None
    return found


def write(store: Store, key: str, report: JsonObject) -> None:
    """It can be made again: a full disk or a store that is away only costs the time."""
    try:
        store.put(key, json.dumps(report).encode())
    except OSError as error:
        log.warning("report_not_kept", error=str(error))
