"""What the answer to a dry run looks like, for the OpenAPI document alone."""

from typing import Any, Literal

from pydantic import Field

from app.answer_shapes import Shape


class Memory(Shape):
    """Bytes on each device, by formula, and what there is."""

    needed_bytes: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    device: str | None
    available_bytes: int | None
    fits: bool | None = Field(description="Null where the device's memory is not known")


class Warned(Shape):
    """Something to look at before the job is made; an `error` would make it fail."""

    level: Literal["warn", "error"]
    code: str
    message: str
    param: str | None


class DryRun(Shape):
    """What a job would do. Null: not known, never guessed."""

    object: Literal["fine_tuning.job.dry_run"]
    model: str
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, Any]
    recipe: dict[str, Any] | None = Field(description="Every `auto` resolved, by the trainer's own rules")
    exact: bool | None = Field(
        description="False: tokens are estimated, from a sample of a large file, or since rows are held out"
    )
    examples: int | None
    validation_examples: int | None
    total_tokens: int | None = Field(description="In one epoch, trained or not")
    trained_tokens: int | None = Field(description="In one epoch")
    steps_per_epoch: int | None
    total_steps: int | None
    counts: dict[str, int] | None
    too_long_share: float | None = Field(description="Of the rows; split, truncated or dropped")
    parameters: int | None
    memory: Memory | None
    estimated_seconds: int | None
    estimated_basis: Literal["same_model", "scaled_by_flops"] | None
    estimated_start: int | None
    estimated_finish: int | None
    warnings: list[Warned]
