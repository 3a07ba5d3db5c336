"""Where looks are asked for: what is looked at is found in a transaction that is over before the look begins.

A look takes seconds to minutes; a connection held meanwhile would be missed elsewhere.
"""

import asyncio
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import catalogue
from app.auth import Caller, KnownCaller
from app.database import Database, run
from app.dependencies import CurrentSettings, OpenStore
from app.errors import NotFound
from app.inspection import subject
from app.inspection.inspector import Inspector
from app.inspection.reports import Reports
from app.recipe import Recipe
from app.settings import Settings
from app.storage import Store
from app.tables import File, JsonObject


@dataclass(frozen=True)
class Subject:
    """`question` is for the inspector; `key` is where the report on it is kept. `bytes`: of all files."""

    file: File
    bytes: int
    question: JsonObject
    key: str


@dataclass(frozen=True)
class Desk:
    """One caller's."""

    database: Database
    store: Store
    settings: Settings
    caller: Caller
    inspector: Inspector
    reports: Reports

    async def subject(
        self, file_id: str, model: str | None, recipe: Recipe, validation: str | None = None
    ) -> Subject:
        """Raises NotFound and InvalidRequest, naming `file_id`, `validation_file` or `model`."""
        async with self.database.transaction(self.caller.owner) as session:
            rows = [await self._file(session, file_id, "file_id")]
            if validation is not None:
                rows.append(await self._file(session, validation, "validation_file"))
            source = None
            if model is not None:
                asked = model, self.caller.owner, self.settings
                source = await run(session, catalogue.find_for_job, *asked)
        folder = None
        if source is not None:
            folder = await asyncio.to_thread(subject.model_folder, source, self.settings, self.store)
        said = recipe.model_dump(mode="json")
        question, key = await asyncio.to_thread(subject.question, self.store, rows, folder, said)
        return Subject(rows[0], sum(row.bytes for row in rows), question, key)

    async def _file(self, session: AsyncSession, file_id: str, param: str) -> File:
        row = await session.scalar(select(File).where(File.id == file_id, *File.visible(self.caller.owner)))
        if row is None:
            raise NotFound(f"No such file: {file_id}", param=param, code="file_not_found")
        return row


async def _desk(request: Request, store: OpenStore, settings: CurrentSettings, caller: KnownCaller) -> Desk:
    state = request.app.state
    return Desk(state.database, store, settings, caller, state.inspector, state.reports)


OpenDesk = Annotated[Desk, Depends(_desk)]
