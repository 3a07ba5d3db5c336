"""The facts the training core states, one JSON object a line: a closed list, readable without torch.

The worker turns them into rows, the benchmark into a table, a test into a list.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

# Of preference pairs, means: chosen, rejected, margin, and accuracy, the share of margins above 0.
Rewards = dict[str, float]


@dataclass(frozen=True)
class Ready:
    """A warm trainer has imported everything and waits for its job."""

    event: ClassVar[str] = "ready"


@dataclass(frozen=True)
class Prepared:
    """The data is encoded and the model loaded; `recipe` has every "auto" resolved."""

    event: ClassVar[str] = "prepared"
    examples: int
    trained_tokens: int  # per epoch
    total_tokens: int  # per epoch
    validation_examples: int
    total_steps: int
    steps_per_epoch: int
    counts: dict[str, int]  # rows, and what was done to those empty or too long
    recipe: dict[str, Any]
    device: str
    precision: str
    parameters: int
    device_memory_bytes: int | None = None  # of one device, in use or not


@dataclass(frozen=True)
class Notice:
    """Something a person should know; `code` is stable, `message` is for reading."""

    event: ClassVar[str] = "notice"
    level: Literal["info", "warn", "error"]
    code: str
    message: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Busy:
    """Work goes on, and for a minute there was nothing else to tell: whoever listens need not worry."""

    event: ClassVar[str] = "busy"


@dataclass(frozen=True)
class Step:
    """One optimizer update. A skipped one (fp16 overflow) changed no weight; its grad_norm is None."""

    event: ClassVar[str] = "step"
    step: int
    epoch: float
    loss: float | None  # mean over the step's trained tokens, or preference pairs
    learning_rate: float
    grad_norm: float | None  # before clipping
    tokens: int  # real tokens of this step, trained or not, padding never
    trained_tokens: int  # since the job began
    tokens_per_second: float
    memory_bytes: int  # peak so far: of the device, or of the process on a CPU
    skipped: bool
    rewards: Rewards | None = None


@dataclass(frozen=True)
class Evaluated:
    """The validation loss: a mean over tokens, or over preference pairs, which alone have rewards."""

    event: ClassVar[str] = "evaluated"
    step: int
    epoch: float
    loss: float | None
    perplexity: float | None
    accuracy: float | None  # share of tokens that the model would have chosen
    tokens: int
    rewards: Rewards | None = None


@dataclass(frozen=True)
class Sampled:
    """What the model makes of the recipe's prompts; `ended_share` ended by themselves."""

    event: ClassVar[str] = "sampled"
    step: int
    samples: list[dict[str, Any]]  # prompt, text, ended
    ended_share: float


@dataclass(frozen=True)
class Saved:
    """A checkpoint is complete on disk, fsynced and renamed into place."""

    event: ClassVar[str] = "saved"
    step: int
    path: str
    manifest_sha256: str
    bytes: int
    metrics: dict[str, float]
    best: bool
    final: bool


@dataclass(frozen=True)
class Finished:
    """The model is at model_path. `reason`: completed or early_stopping."""

    event: ClassVar[str] = "finished"
    step: int
    reason: str
    model_path: str
    manifest_sha256: str
    trained_tokens: int
    best_step: int | None
    best_loss: float | None


@dataclass(frozen=True)
class Failed:
    """Why there is no model; `param` names the hyperparameter at fault."""

    event: ClassVar[str] = "failed"
    code: str
    message: str
    param: str | None = None
    step: int | None = None


Event = Ready | Prepared | Notice | Busy | Step | Evaluated | Sampled | Saved | Finished | Failed
KINDS: dict[str, type[Event]] = {
    kind.event: kind
    for kind in (Ready, Prepared, Notice, Busy, Step, Evaluated, Sampled, Saved, Finished, Failed)
}


def line(event: Event) -> str:
    """One line of JSON, without the newline. Numbers JSON cannot say (NaN, infinity) become null."""
    said = {"event": event.event, **dataclasses.asdict(event)}
    return json.dumps(_finite(said), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def parse(text: str | bytes) -> Event:
    """The event that `line` wrote. Raises ValueError on anything else."""
    said = json.loads(text)
    if not isinstance(said, dict) or said.get("event") not in KINDS:
        raise ValueError("not an event of the trainer")
    kind = KINDS[said.pop("event")]
    try:
        return kind(**said)
    except TypeError as error:
        raise ValueError(f"not a {kind.event} event: {error}") from None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
