"""`finetuned doctor`: checks this installation, whether it runs or not, and says how to mend it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from app.terminal import screen
from app.terminal.connection import Home, KeyFile, Url, connect, read_settings
from app.terminal.jobs import AsJson
from app.terminal.outcome import Exit, Failure

if TYPE_CHECKING:
    from app.settings import Settings
    from app.terminal.checkup.verdict import Check, Verdict

SIGNS = {
    "ok": ("ok  ", "green"),
    "note": ("-   ", "dim"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "bold red"),
}


def doctor(url: Url = None, key_file: KeyFile = None, home: Home = None, as_json: AsJson = False) -> None:
    """Check this installation and say how to mend it: versions, GPU, disk, PostgreSQL, broker, API, key.

    Nothing needs to run. The exit code is 1 where something does not work.
    """
    from app.terminal.checkup.verdict import heard

    found: list[Verdict] = []
    for about, check in _checks(url, key_file, home):
        verdicts = heard(about, check)
        found += verdicts
        if not as_json:
            for verdict in verdicts:
                _show(verdict)
    broken = sum(verdict.level == "fail" for verdict in found)
    if as_json:
        document: dict[str, Any] = {"object": "doctor", "healthy": not broken}
        screen.show_json(document | {"checks": [vars(verdict) for verdict in found]})
    elif broken:
        screen.say(f"\n{broken} to be mended.", "bold")
    else:
        screen.say("\nNothing needs to be mended.")
    if broken:
        raise typer.Exit(Exit.FAILED)


def _checks(url: str | None, key_file: Path | None, home: Path | None) -> "Iterator[tuple[str, Check]]":
    """In the order in which one thing needs the other."""
    from app.terminal.checkup import api, installation, machine, servers

    yield "python", installation.python
    yield "packages", installation.packages
    yield "torch", installation.devices
    try:
        settings = read_settings(home=home)
    except Failure as failure:
        yield "settings", lambda sentence=failure.sentence: _failed("settings", sentence)  # type: ignore[misc]
        return
    yield "home", lambda: machine.home(settings)
    yield "disk", lambda: machine.disk(settings)
    yield "shared memory", machine.shared_memory
    yield "clock", api.clock
    yield "postgres", lambda: servers.postgres(settings)
    yield "broker", lambda: servers.broker(settings)
    yield "api", lambda: _service(settings, url, key_file, home)


def _service(
    settings: "Settings", url: str | None, key_file: Path | None, home: Path | None
) -> "Iterator[Verdict]":
    from app.terminal.checkup import api

    try:
        connection = connect(url, key_file, home)
    except Failure as failure:
        yield from _failed("api", failure.sentence)
        return
    with connection:
        yield from api.answers(connection, settings, named=url is not None or settings.url is not None)


def _failed(about: str, sentence: str) -> "Iterator[Verdict]":
    from app.terminal.checkup.verdict import Verdict

    yield Verdict(about, "fail", sentence)


def _show(verdict: "Verdict") -> None:
    word, style = SIGNS[verdict.level]
    screen.say(Text.assemble((word, style), f"  {verdict.about}: {screen.plain(verdict.says)}"))
    if verdict.mend:
        screen.say(f"      to mend it: {verdict.mend}", "cyan")
