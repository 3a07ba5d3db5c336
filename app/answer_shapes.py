"""What answers look like, for the OpenAPI document alone: `wire` makes them, and tests hold both together.

All times are whole seconds. Keys that are not listed may be added; a client ignores what it does not know.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = int


class Shape(BaseModel):
    """Documented keys, and room for more."""

    model_config = ConfigDict(extra="allow")


class ErrorFacts(Shape):
    """Why a request was refused."""

    message: str = Field(description="What is wrong, and what to do")
    type: str
    param: str | None = Field(description="The field at fault")
    code: str | None = Field(description="Stable, for machines")


class Error(Shape):
    """Every answer that is not a success."""

    error: ErrorFacts


class Deleted(Shape):
    """What is gone."""

    id: str
    object: str
    deleted: bool


class Page(Shape):
    """A list. `after` the id of its last item begins the next one."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    has_more: bool
    first_id: str | None
    last_id: str | None


class File(Shape):
    """What was uploaded, or a job's results."""

    id: str
    object: Literal["file"]
    bytes: Count
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["uploaded", "processed", "error"]
    status_details: str | None
    sha256: str
    rows: Count


class Files(Page):
    """Files."""

    data: list[File]  # type: ignore[assignment]


class JobFailure(Shape):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class QueuePlace(Shape):
    """Where a queued job stands: 1 is next."""

    position: int
    estimated_start: int | None = Field(description="Null where nothing was measured that could tell")


class JobProgress(Shape):
    """How far a job is."""

    phase: str | None
    step: int
    total_steps: int | None


class Job(Shape):
    """A request to train, and what became of it."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    started_at: int | None
    finished_at: int | None
    estimated_finish: int | None = Field(
        description="From the pace of the last steps, and what evaluations and saving took; null until known"
    )
    status: Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
    model: str
    organization_id: str
    training_file: str
    validation_file: str | None
    result_files: list[str] = Field(description="Once it has succeeded: its metrics as CSV")
    seed: int
    suffix: str | None
    hyperparameters: dict[str, Any] = Field(description="`auto` until it is resolved, then numbers")
    method: dict[str, Any]
    owner: str
    given: dict[str, Any] = Field(description="The hyperparameters of the request, as it said them")
    refuse_on: list[str] | None
    recipe: dict[str, Any] = Field(description="All hyperparameters")
    error: JobFailure | None
    fine_tuned_model: str | None
    trained_tokens: int | None
    integrations: list[dict[str, Any]] | None
    metadata: dict[str, str] | None
    queue: QueuePlace | None
    progress: JobProgress
    attempt: int
    max_attempts: int
    worker: str | None
    cancel_requested: bool
    pause_requested: bool
    loss_curve: list[tuple[int, float]] | None = Field(None, description="In lists that ask for `points`")


class Jobs(Page):
    """Jobs."""

    data: list[Job]  # type: ignore[assignment]


class Attempt(Shape):
    """One claim of a job by one worker."""

    object: Literal["fine_tuning.job.attempt"]
    number: int = Field(description="Grows, and may leave numbers out")
    worker: str
    started_at: int
    ended_at: int | None
    reason: str | None = Field(description="Why it ended: `finished`, or a code as events have it")
    exit_code: int | None
    device: str | None
    device_memory_bytes: int | None
    tokens_per_second: float | None


class Attempts(Shape):
    """Attempts."""

    object: Literal["list"]
    data: list[Attempt]
    has_more: bool


class Event(Shape):
    """A line of a job's history."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] = Field(description="`code` is stable, for machines")


class Events(Page):
    """Events."""

    data: list[Event]  # type: ignore[assignment]


class Checkpoint(Shape):
    """A saved state of a job."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str = Field(description="Usable as a model's name")
    step_number: int
    metrics: dict[str, float]
    bytes: Count
    best: bool
    pinned: bool


class Checkpoints(Page):
    """Checkpoints."""

    data: list[Checkpoint]  # type: ignore[assignment]


class Metric(Shape):
    """What one step measured."""

    step: int
    epoch: float | None
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens: int | None
    trained_tokens: int | None
    tokens_per_second: float | None
    memory_bytes: int | None
    skipped: bool | None
    created_at: int
    valid_loss: float | None = None
    valid_perplexity: float | None = None
    valid_accuracy: float | None = None


class Metrics(Shape):
    """Metrics."""

    object: Literal["list"]
    data: list[Metric]
    has_more: bool


class Model(Shape):
    """A model that can be trained from or asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(Shape):
    """All models."""

    object: Literal["list"]
    data: list[Model]


class Completion(Shape):
    """What a model wrote."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
