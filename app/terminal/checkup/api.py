"""The API: whether it answers, is ready, takes the key, and whether anybody trains."""

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from app.settings import Settings
from app.terminal.checkup.servers import CLOCK_LIMIT
from app.terminal.checkup.verdict import Verdict
from app.terminal.outcome import Failure, Unreachable

if TYPE_CHECKING:
    from app.terminal.client import Api

EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)  # before this was written: such a clock is wrong


def clock() -> Iterator[Verdict]:
    now = datetime.now(UTC)
    if now < EARLIEST:
        yield Verdict("clock", "fail", f"it is not {now:%Y-%m-%d}", "let the machine set its clock by NTP")
    else:
        yield Verdict("clock", "ok", f"{now:%Y-%m-%d %H:%M:%S} UTC")


def answers(api: "Api", settings: Settings, *, named: bool) -> Iterator[Verdict]:
    """Whether it is there; what it says of itself; what it says to the key. `named`: somebody said where."""
    try:
        ready = api.ready()
    except Unreachable as error:
        yield Verdict("api", "fail", error.sentence) if named else _port(api, settings)
        return
    if ready.get("status") != "ok":
        gone = ", ".join(ready.get("unavailable") or ready.get("degraded") or ["something"])
        yield Verdict("api", "fail", f"{api.url} runs without: {gone}", "see the checks of the servers")
    elif ready.get("degraded"):
        what = f"{api.url} answers, but without: {', '.join(ready['degraded'])}"
        yield Verdict("api", "warn", what, "jobs are taken and wait; see the checks of the servers")
    else:
        yield Verdict("api", "ok", f"{api.url} is ready")
    yield from _clocks(api)
    yield from _key(api)


def _port(api: "Api", settings: Settings) -> Verdict:
    """Whether `up` could listen where nothing answered."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((settings.host, settings.port))
    except OSError as taken:
        what = f"port {settings.port} of {settings.host} cannot be used ({taken.strerror})"
        return Verdict("api", "fail", what, "choose another by --port or FINETUNED_PORT, or end what has it")
    return Verdict("api", "note", f"not running at {api.url}, and its port is free: `finetuned up` starts it")


def _clocks(api: "Api") -> Iterator[Verdict]:
    if api.date is None:
        return
    apart = abs(parsedate_to_datetime(api.date).timestamp() - time.time())
    if apart > CLOCK_LIMIT:
        what = f"the service's clock and this machine's are {apart:.0f} s apart"
        yield Verdict("clock", "warn", what, "let both machines set their clocks by NTP")


def _key(api: "Api") -> Iterator[Verdict]:
    try:
        key = api.get("/v1/api_keys/me")
    except Failure as failure:
        yield Verdict("key", "fail", failure.sentence)
        return
    yield Verdict("key", "ok", f"{key['id']} of {key['owner']}, may {' '.join(key['scopes'])}")
    try:
        workers = api.get("/v1/workers")["data"]
    except Failure as failure:
        yield Verdict("workers", "note", failure.sentence)
        return
    alive = [row for row in workers if row["alive"]]
    if not alive:
        yield Verdict(
            "workers", "warn", "none has been heard of lately", "jobs wait; see <home>/logs/worker.log"
        )
    for row in alive:
        devices = ", ".join(device["name"] for device in row["devices"] or ()) or "its processors"
        yield Verdict(
            "workers", "ok", f"{row['id']}: {row['busy']} of {row['slots']} slots taken, on {devices}"
        )
