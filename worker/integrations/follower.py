"""The worker's end of an integration: events go in and never wait, what became of them comes out as events.

Whatever goes wrong here is told in the job's history, with what to do about it; the job never notices.
"""

import contextlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from app.embedded.heritage import harmless
from worker.training import events

log = structlog.get_logger()
COMMAND = (sys.executable, "-m", "worker.integrations")
# What the libraries find their credentials and their servers by; none of ours.
SERVICES = ("WANDB_", "MLFLOW_", "DATABRICKS_", "HF_", "AWS_", "AZURE_", "GOOGLE_")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http", "no_proxy", "SSL_", "REQUESTS_", "CURL_")
MOST_WAITING = 10_000  # lines that a slow service may be behind; then steps are left out
PATIENCE = 6 * 3600.0  # seconds that the last words, and a large model's upload, may take
Tell = Callable[[events.Notice], None]
Json = dict[str, Any]


class Follower:
    """One attempt's. Every call returns at once."""

    def __init__(self, integrations: list[Json], job: Json, folder: Path, tell: Tell) -> None:
        """`folder` is for what the libraries keep on the way, and goes with the process."""
        self._integrations, self._job, self._folder, self._tell = integrations, job, folder, tell
        self._lines: queue.Queue[Json | None] = queue.Queue(MOST_WAITING)
        self._left_out = 0
        self._process: subprocess.Popen[str] | None = None
        self._over = threading.Event()
        self._model: AbstractContextManager[Path] | None = None
        threading.Thread(target=self._run, name=f"integrations-{job['id']}", daemon=True).start()

    def hear(self, event: events.Event) -> None:
        """Numbers of a step or an evaluation; everything else is for our own history."""
        if isinstance(event, events.Step | events.Evaluated):
            rewards = event.rewards or {}
            said = asdict(event) | {f"reward_{name}": value for name, value in rewards.items()}
            prefix = "" if isinstance(event, events.Step) else "valid_"
            values = {
                f"{prefix}{name}": float(value)
                for name, value in said.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and name != "step"
            }
            self._put({"step": event.step, "values": values})

    def end(self, status: str, model: AbstractContextManager[Path] | None) -> None:
        """The job's status, and its model's folder for as long as it is held."""
        self._model = model
        # Room comes when the process takes something, or is ended because it does not.
        threading.Thread(target=self._lines.put, args=({"status": status},), daemon=True).start()
        threading.Thread(target=self._give_up, daemon=True).start()

    def _give_up(self) -> None:
        process = None if self._over.wait(PATIENCE) else self._process
        if process is not None and process.poll() is None:
            process.kill()
            self._fail("all", f"No answer within {PATIENCE / 3600:.0f} hours.", "Is the service well?")

    def _put(self, line: Json) -> None:
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._left_out += 1

    def _run(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"WANDB_DIR": str(self._folder)} | harmless(os.environ, SERVICES + PROXIES),
                cwd=Path(__file__).resolve().parents[2],
                start_new_session=True,
                text=True,
            )
            self._process = process
            listener = threading.Thread(target=self._listen, args=(process,), daemon=True)
            listener.start()
            self._feed(process)
            listener.join(5)
        except Exception as error:  # no process, no memory: the job goes on
            log.exception("integrations_failed", job_id=self._job["id"])
            self._fail("all", f"{type(error).__name__}: {error}", "The worker's log has more.")
        finally:
            self._over.set()
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _feed(self, process: subprocess.Popen[str]) -> None:
        pipe: Any = process.stdin
        first = {"job": self._job, "integrations": self._integrations}
        with contextlib.ExitStack() as held, contextlib.suppress(BrokenPipeError):
            line: Json | None = first
            while line is not None:
                if "status" in line:
                    line |= {"model": self._hold(held)}
                pipe.write(json.dumps(line) + "\n")
                pipe.flush()
                line = None if "status" in line else self._lines.get()
            pipe.close()
            process.wait()
        process.wait()

    def _hold(self, held: contextlib.ExitStack) -> str | None:
        """The model's folder; None where it was deleted meanwhile or its store is away: how the job ended is
        told all the same."""
        try:
            return str(held.enter_context(self._model)) if self._model is not None else None
        except OSError as error:
            log.warning("integration_without_model", job_id=self._job["id"], error=str(error))
            return None

    def _listen(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            with contextlib.suppress(ValueError, KeyError):
                self._hear_back(json.loads(line))
        if self._left_out:
            message = (
                f"{self._left_out:,} steps were left out of the integrations: their service is too slow."
            )
            self._say(events.Notice("warn", "integration_slow", message, {"steps": self._left_out}))

    def _hear_back(self, said: Json) -> None:
        if "error" in said:
            self._fail(said["type"], said["error"], said["advice"])
        elif said["ended"] == "succeeded" or said["type"] != "hub":
            place = f": {said['url']}" if said["url"] else ""
            message = f"Reported to {said['type']}{place}."
            facts = {"type": said["type"], "url": said["url"]}
            self._say(events.Notice("info", "integration_done", message, facts))

    def _fail(self, kind: str, why: str, advice: str) -> None:
        message = f"The integration `{kind}` failed, the job did not: {why} {advice}"
        self._say(events.Notice("warn", "integration_failed", message[:1000], {"type": kind}))

    def _say(self, notice: events.Notice) -> None:
        try:
            self._tell(notice)
        except Exception:  # the database may be away; this is not worth waiting for it
            log.exception("integration_untold", job_id=self._job["id"], code=notice.code)
