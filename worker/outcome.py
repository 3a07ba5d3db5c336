"""How an attempt ended, and what that means for the job."""

import random
from datetime import timedelta
from enum import StrEnum

from sqlalchemy.orm import Session

from app.lifecycle import claims
from app.lifecycle.claims import Claim, JobError
from app.settings import Settings
from worker.launch import FINAL_CODES, STOPPED
from worker.training.events import Failed

LONGEST_DELAY = timedelta(minutes=15)
LONGEST_LOG = 8000  # characters: 50 lines of a traceback


class Asked(StrEnum):
    """Why the supervisor stopped a trainer."""

    CANCEL = "cancelled"
    PAUSE = "paused"
    GIVE_WAY = claims.PREEMPTED
    DRAIN = "drained"
    STALL = "stalled"
    LOST = "claim_lost"
    OFFLINE = "offline"


# Stopped for no fault of the job's: costs no attempt.
WISHED = (Asked.CANCEL, Asked.PAUSE, Asked.GIVE_WAY, Asked.DRAIN, Asked.OFFLINE)


def retry_delay(settings: Settings, crashes: int) -> timedelta:
    """Doubled with every crash, at most 15 minutes, ±20 % so that many jobs do not come back at once."""
    delay: timedelta = min(settings.retry_delay * 2 ** min(crashes - 1, 30), LONGEST_DELAY)
    spread: timedelta = delay * random.uniform(0.8, 1.2)  # noqa: S311  # no secret
    return spread


def failure(code: int, failed: Failed | None, last_lines: list[str]) -> JobError:
    """What the user reads: the trainer's own words, or how it died with the end of its log."""
    if failed is not None:
        param = f"hyperparameters.{failed.param}" if failed.param else None
        return JobError(failed.code, failed.message, param)
    if code in FINAL_CODES:
        return JobError(FINAL_CODES[code], f"The trainer ended with exit code {code}.")
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    message = f"The trainer {how}."
    if code == -9:
        message += " A signal 9 that nobody sent is the kernel's: the machine ran out of memory."
    if last_lines:
        message += " Its last lines:\n" + "\n".join(last_lines)[-LONGEST_LOG:]
    return JobError("worker_crashed", message)


def leave(
    session: Session,
    held: Claim,
    settings: Settings,
    asked: Asked | None,
    code: int,
    failed: Failed | None,
    last_lines: list[str],
    crashes: int,
) -> None:
    """Give the job back or fail it, by why and how its trainer ended without a model; `crashes` is how many
    attempts in a row now, this one included, have ended without a new checkpoint."""
    delay = retry_delay(settings, crashes)
    if asked in WISHED:
        claims.release(session, held, asked.value, code)
    elif asked is Asked.STALL:
        minutes = settings.stall.total_seconds() / 60
        message = f"Nothing was heard of the trainer for {minutes:.0f} minutes; it was ended."
        claims.fail(session, held, JobError("stalled", message), code)
    elif code in FINAL_CODES:
        claims.fail(session, held, failure(code, failed, last_lines), code)
    elif code == STOPPED:
        # A machine that shuts down may signal the trainer before it signals us: it has saved, all is well.
        claims.release(session, held, "interrupted", code, delay)
    else:
        claims.retry(session, held, failure(code, failed, last_lines), delay, code)
