"""A job that is not to be trained on what a report finds: `refuse_on`, when created or before it begins."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import InvalidRequest
from app.inspection import reports, subject
from app.inspection.findings import KINDS
from app.inspection.inspector import ask_and_wait
from app.recipe import Recipe
from app.storage import Store
from app.tables import File

if TYPE_CHECKING:
    from app.inspection.desk import Desk  # of the API: the worker loads no fastapi

AT_ONCE_BYTES = 8_000_000  # of both files: a report of more is not waited for when the job is created
WAIT_SECONDS = 60
JsonObject = dict[str, Any]


def check_codes(codes: list[str]) -> None:
    """Raises InvalidRequest for a code that no finding has."""
    for code in codes:
        if code not in KINDS:
            near = difflib.get_close_matches(code, KINDS, 1, 0.6)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise InvalidRequest(
                f"No finding is called {code[:64]!r}.{hint} There are: {', '.join(KINDS)}.",
                param="refuse_on",
                code="invalid_value",
            )


async def refuse_now(
    desk: Desk, codes: list[str], model: str, training: str, validation: str | None, recipe: Recipe
) -> None:
    """Raises InvalidRequest for a finding; says nothing where that would take long, or cannot be known yet.

    Then the worker finds it, before the first step.
    """
    try:
        found = await desk.subject(training, model, recipe, validation)
        if found.bytes > AT_ONCE_BYTES and not await desk.reports.is_kept(found.key):
            return
        report = await desk.reports.get(found.key, found.question, WAIT_SECONDS)
    except InvalidRequest as error:
        if error.code == "model_not_fetched":
            return
        param = "training_file" if error.param == "file_id" else error.param
        raise InvalidRequest(error.message, param=param, code=error.code) from error
    if report is not None and (told := tell(report, codes)) is not None:
        raise InvalidRequest(told, param="refuse_on", code="refused_finding")


def refuse_late(
    store: Store, files: list[File], folder: Path, recipe: JsonObject, codes: list[str]
) -> str | None:
    """Why the job is not to be trained, if it is not. Takes as long as the report. Raises InvalidRequest."""
    question, key = subject.question(store, files, folder, recipe)
    report = reports.read(store, key)
    if report is None:
        report = ask_and_wait("report", reports.SECONDS, **question)
        reports.write(store, key, report)
    return tell(report, codes)


def tell(report: JsonObject, codes: list[str]) -> str | None:
    """The findings that were not to be there, in a sentence; None where there is none."""
    told = [
        f"{finding['code']} ({finding['count']:,} rows, the first in line {finding['lines'][0]})"
        for finding in report["findings"]
        if finding["code"] in codes
    ]
    if not told:
        return None
    return f"The job was to be refused on what its files hold: {'; '.join(told)}; see the file's report."
