"""Looks into files for the API and the worker: each one a child process with bounded memory and time."""

import asyncio
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import structlog

from app.errors import InvalidRequest, TooMany

log = structlog.get_logger()
COMMAND = (sys.executable, "-m", "app.inspection")
ROOT = Path(__file__).resolve().parents[2]  # where the package lies, installed or not
# Nothing of ours: no URL, no password. Arrow's own allocator would reserve memory that the limit counts.
ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "TOKENIZERS_PARALLELISM": "true"}
AT_ONCE = 3  # one of them may be a report
WAITING = 32  # more looks than these are refused for now
JsonObject = dict[str, Any]


class Inspector:
    """The API's looks: a few at a time, the rest wait."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._asked = 0

    async def ask(self, verb: str, seconds: int, **said: Any) -> JsonObject:
        """What the child answers. Raises InvalidRequest with its reason, TooMany."""
        if self._asked >= WAITING:
            raise TooMany("Too many files are being looked into; try again in a moment.")
        self._asked += 1
        try:
            async with self._turn:
                return await _ask({"verb": verb, "seconds": seconds, **said}, seconds)
        finally:
            self._asked -= 1


async def _ask(said: JsonObject, seconds: int) -> JsonObject:
    child = await asyncio.create_subprocess_exec(
        *COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        cwd=ROOT,
    )
    try:
        async with asyncio.timeout(seconds + 5):
            out, _ = await child.communicate(json.dumps(said).encode())
    except TimeoutError:
        out = b""
    finally:
        if child.returncode is None:  # the one who asked is gone
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    return _heard(said, out, child.returncode)


def ask_and_wait(verb: str, seconds: int, **said: Any) -> JsonObject:
    """The same for a thread. Raises InvalidRequest."""
    question = {"verb": verb, "seconds": seconds, **said}
    done = subprocess.run(
        COMMAND,
        input=json.dumps(question).encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
        cwd=ROOT,
        check=False,
    )
    return _heard(question, done.stdout, done.returncode)


def _heard(said: JsonObject, out: bytes, code: int | None) -> JsonObject:
    try:
        found: JsonObject = json.loads(out)
    except ValueError:
        # Killed by its alarm, by the kernel for memory, or crashed over what it read.
        log.warning("inspection_died", verb=said["verb"], path=said.get("path"), code=code)
        raise InvalidRequest(
            "The file takes more time or memory to look into than is given to it; is it as it should be?",
            param="file_id",
            code="too_costly",
        ) from None
    if "error" in found:
        error = found["error"]
        raise InvalidRequest(error["message"], param=error["param"], code=error["code"])
    answer: JsonObject = found["answer"]
    return answer
