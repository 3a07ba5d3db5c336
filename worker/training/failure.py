"""How a job can end badly: one exception, its code on the wire and its exit status."""

import errno
import json

from app.dataset import DatasetError
from app.encoding import EncodingError
from app.hyperparameters import RecipeError
from worker.training.events import Notice

FINISHED, STOPPED = 0, 75
OUT_OF_MEMORY, BAD_INPUT, DISK_FULL, NON_FINITE, TIME_OVER, BROKEN = 77, 78, 79, 80, 81, 1
# EFBIG: the size limit of a process; to a job it is a full disk like any other.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_WORDS = ("os error 28", "os error 27", "os error 122", "No space left", "File too large")


class Failure(Exception):
    """The job cannot go on. `message` says what to try; `param` names the hyperparameter at fault."""

    def __init__(
        self, code: str, message: str, exit_status: int = BAD_INPUT, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.exit_status, self.param = code, message, exit_status, param


class Stopped(Exception):
    """Work was given up because the process was asked to stop."""


class Cramped(Stopped):
    """All processes must start again with less at a time; `notice` says with how much."""

    def __init__(self, notice: Notice) -> None:
        super().__init__(notice.message)
        self.notice = notice


def classify(error: BaseException) -> Failure:
    """The failure that an exception means; an unknown one is `internal_error` with exit status 1."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, RecipeError):
        return Failure(error.code, error.message, BAD_INPUT, error.field)
    if isinstance(error, DatasetError):
        return Failure("invalid_training_file", str(error), BAD_INPUT)
    if isinstance(error, EncodingError):
        return Failure("invalid_training_file" if error.line else "invalid_model", str(error), BAD_INPUT)
    if isinstance(error, json.JSONDecodeError):
        return Failure("invalid_recipe", f"not JSON: {error}", BAD_INPUT)
    if is_disk_full(error):
        return Failure(
            "disk_full", "The disk is full: the last checkpoint that was saved still stands.", DISK_FULL
        )
    if is_out_of_memory(error):
        hint = "Try a smaller max_length, gradient_checkpointing, or lora_rank."
        return Failure(
            "out_of_memory", f"One example at a time does not fit into memory. {hint}", OUT_OF_MEMORY
        )
    return Failure("internal_error", f"{type(error).__name__}: {str(error)[:500]}", BROKEN)


def is_disk_full(error: BaseException) -> bool:
    """safetensors and torch tell of a full disk in words only."""
    return getattr(error, "errno", None) in FULL or any(word in str(error) for word in FULL_WORDS)


def is_out_of_memory(error: BaseException) -> bool:
    """torch.OutOfMemoryError on a GPU; on a CPU a RuntimeError of the allocator, or MemoryError."""
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
