"""Ids as people type them: whole, by any beginning that only one has, or `last`."""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from app.terminal.outcome import Failure, usage

if TYPE_CHECKING:
    from app.terminal.client import Api

LAST = "last"
PAGE = 1000
SEARCHED = 10_000  # newest things among which a beginning is looked for
SHOWN = 5


def job(api: "Api", given: str) -> str:
    """The job's whole id. Raises Failure."""
    if re.fullmatch(r"ftjob-[0-9a-f]{24}", given):
        return given
    ids = (row["id"] for row in api.pages("/v1/fine_tuning/jobs", 1 if given == LAST else PAGE))
    return _choose("job", given, ids, "ftjob-", "finetuned jobs")


def file(api: "Api", given: str) -> str:
    if re.fullmatch(r"file-[0-9a-f]{24}", given):
        return given
    ids = (row["id"] for row in api.pages("/v1/files", 1 if given == LAST else PAGE))
    return _choose("file", given, ids, "file-", "finetuned files list")


def key(api: "Api", given: str) -> str:
    ids = (row["id"] for row in api.pages("/v1/api_keys", PAGE) if row["revoked_at"] is None)
    return _choose("key", given, ids, "", "finetuned keys list")


def webhook(api: "Api", given: str) -> str:
    ids = (row["id"] for row in api.pages("/v1/webhook_endpoints", 100))
    return _choose("webhook endpoint", given, ids, "we_", "finetuned webhooks list")


def delivery(api: "Api", where: str, given: str) -> str:
    """Of the endpoint whose deliveries are at `where`."""
    ids = (row["id"] for row in api.pages(where, 100))
    return _choose("delivery", given, ids, "", "finetuned webhooks deliveries")


def checkpoint(api: "Api", where: str, given: str) -> str:
    """Of the job whose checkpoints are at `where`; by its step too."""
    rows = list(islice(api.pages(where, 100), SEARCHED))
    for row in rows:
        if given in (str(row["step_number"]), row["fine_tuned_model_checkpoint"]):
            return str(row["id"])
    ids = (row["id"] for row in rows)
    return _choose("checkpoint", given, ids, "ftckpt_", "finetuned checkpoints list")


def model(api: "Api", given: str) -> str:
    """A model's name, also by its job's id; `last` is the newest of one's own. What is not known is left
    as it is: it may be a checkpoint, or a model of the hub."""
    if given.startswith("ftjob-"):
        found = api.get(f"/v1/fine_tuning/jobs/{job(api, given)}")
        if not found["fine_tuned_model"]:
            raise Failure(f"{found['id']} has no model yet: it is {found['status']}.")
        return str(found["fine_tuned_model"])
    if not given.strip():
        raise usage("The name of the model is empty.")
    rows = api.get("/v1/models")["data"]
    if given == LAST:
        return _choose(
            "model", given, (row["id"] for row in rows if "job" in row), "", "finetuned models list"
        )
    names = [row["id"] for row in rows]
    found_names = [given] if given in names else [name for name in names if name.startswith(given)]
    if len(found_names) > 1:
        raise _ambiguous("model", given, found_names)
    return found_names[0] if found_names else given


def _choose(kind: str, given: str, ids: Iterable[str], prefix: str, listing: str) -> str:
    if not given.strip():  # every id begins with nothing, and what was meant may be an empty variable
        raise usage(f"The id of a {kind} is empty.")
    if given == LAST:
        newest = next(iter(ids), None)
        if newest is None:
            raise Failure(f"There is no {kind} yet, and so no last one.")
        return newest
    found = []
    for known in islice(ids, SEARCHED):
        if known == given:
            return known
        if known.startswith((given, prefix + given)):
            found.append(known)
    if len(found) > 1:
        raise _ambiguous(kind, given, found)
    if not found:
        raise Failure(f"There is no {kind} {given!r}: `{listing}` lists what there is.")
    return found[0]


def _ambiguous(kind: str, given: str, found: list[str]) -> Failure:
    more = ", …" if len(found) > SHOWN else ""
    return Failure(f"{given!r} begins the name of more than one {kind}: {', '.join(found[:SHOWN])}{more}.")


# Shell completion. It may take a moment and must never disturb the line that is being typed.


def _completing(find: "Callable[[Api], Iterable[tuple[str, str]]]") -> Iterator[tuple[str, str]]:
    import httpx2

    from app.terminal.connection import connect

    try:
        with connect(None, None, None, timeout=httpx2.Timeout(1.0), tries=1) as api:
            yield from find(api)
    except (Failure, KeyError, TypeError, httpx2.HTTPError):
        return


def complete_job(incomplete: str) -> list[tuple[str, str]]:
    def find(api: "Api") -> Iterator[tuple[str, str]]:
        for row in api.get("/v1/fine_tuning/jobs", limit=50)["data"]:
            yield row["id"], f"{row['status']}, {row['model']}"

    return [pair for pair in _completing(find) if pair[0].startswith(incomplete)]


def complete_model(incomplete: str) -> list[tuple[str, str]]:
    def find(api: "Api") -> Iterator[tuple[str, str]]:
        for row in api.get("/v1/models")["data"]:
            yield row["id"], str(row.get("base_model") or "base model")

    return [pair for pair in _completing(find) if pair[0].startswith(incomplete)]


def complete_file(incomplete: str) -> list[tuple[str, str]]:
    def find(api: "Api") -> Iterator[tuple[str, str]]:
        for row in api.get("/v1/files", limit=50)["data"]:
            yield row["id"], row["filename"]

    return [pair for pair in _completing(find) if pair[0].startswith(incomplete)]
