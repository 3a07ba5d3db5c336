"""The shapes that leave the service, as OpenAI's SDK reads them; our own keys come after theirs.

All times are whole seconds; what is unknown is null or left out, never NaN.
"""

import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app import priority
from app.catalogue import Source
from app.forecast import Place
from app.permissions import CheckpointPermission
from app.tables import Attempt, Checkpoint, Event, File, Job, JsonObject, Metric, Model
from app.webhooks.rows import WebhookDelivery, WebhookEndpoint

OPENAI_HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")
REWARDS = tuple(
    f"{prefix}reward_{name}"
    for prefix in ("", "valid_")
    for name in ("chosen", "rejected", "margin", "accuracy")
)


def seconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())


def page(data: Sequence[JsonObject], has_more: bool) -> JsonObject:
    """The envelope of every list; the SDK asks for ever when `has_more` is left out."""
    return {
        "object": "list",
        "data": list(data),
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def file(row: File) -> JsonObject:
    body: JsonObject = {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": seconds(row.created_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": row.status,
        "status_details": row.status_details,
        "sha256": row.sha256,
        "rows": row.rows,
        "format": row.format,
        "shape": row.shape,
        "columns": row.columns,
        "problems": row.problems or [],
    }
    if row.expires_at is not None:
        body["expires_at"] = seconds(row.expires_at)
    return body


def _openai_hyperparameters(row: Job) -> JsonObject:
    """OpenAI's own, in their names: what was asked until it is resolved, then what was resolved."""
    found = row.resolved or row.recipe
    epochs = found.get("num_epochs", "auto")
    return {
        # An SDK reads a whole number here; our fractional epochs stand in `recipe`.
        "n_epochs": math.ceil(epochs) if isinstance(epochs, int | float) else epochs,
        "batch_size": found.get("total_train_batch_size", "auto"),
        "learning_rate_multiplier": found.get("learning_rate_multiplier", "auto"),
        **({"beta": found["beta"]} if found.get("beta") is not None else {}),
    }


def job(row: Job, organization: str, place: Place | None = None) -> JsonObject:
    """`place`: where it stands in the queue, as far as it stands there."""
    asked = {k: v for k, v in row.hyperparameters.items() if k not in (*OPENAI_HYPERPARAMETERS, "seed")}
    resolved = {k: (row.resolved or {}).get(k, v) for k, v in asked.items()}
    hyperparameters = {**_openai_hyperparameters(row), **resolved}
    kind = row.method["type"]
    error = None
    if row.status == "failed":
        error = {"code": row.error_code, "message": row.error_message, "param": row.error_param}
    return {
        "id": row.id,
        "object": "fine_tuning.job",
        "created_at": seconds(row.created_at),
        "model": row.model,
        "organization_id": organization,
        "status": row.status,
        "training_file": row.training_file,
        "validation_file": row.validation_file,
        "result_files": [
            file_id
            for file_id in (row.result_file, *(one.get("file_id") for one in row.integrations or ()))
            if file_id
        ],
        "seed": row.seed,
        "hyperparameters": hyperparameters,
        "method": {"type": kind, kind: {"hyperparameters": hyperparameters}},
        "error": error,
        "fine_tuned_model": row.fine_tuned_model,
        "finished_at": seconds(row.finished_at),
        "trained_tokens": row.trained_tokens,
        "estimated_finish": seconds(row.estimated_finish if place is None else place.ends_at),
        "integrations": row.integrations,
        "metadata": row.job_metadata,
        "suffix": row.suffix,
        # Ours
        "owner": row.owner,
        "given": row.hyperparameters,
        "refuse_on": row.refuse_on,
        "recipe": row.resolved or row.recipe,
        "priority": priority.name(row.priority),
        "requires": {"labels": row.labels, "memory_bytes": row.least_memory_bytes},
        "queue": place and {"position": place.position, "estimated_start": seconds(place.starts_at)},
        "started_at": seconds(row.started_at),
        "progress": {"phase": row.phase, "step": row.step, "total_steps": row.total_steps},
        "attempt": row.attempt,
        "max_attempts": row.max_attempts,
        "worker": row.worker,
        "cancel_requested": row.cancel_requested_at is not None,
        "pause_requested": row.pause_requested_at is not None,
    }


def attempt(row: Attempt) -> JsonObject:
    return {
        "object": "fine_tuning.job.attempt",
        "number": row.epoch,
        "worker": row.worker,
        "started_at": seconds(row.started_at),
        "ended_at": seconds(row.ended_at),
        "reason": row.reason,
        "exit_code": row.exit_code,
        "device": row.device,
        "device_memory_bytes": row.device_memory_bytes,
        "tokens_per_second": row.tokens_per_second,
    }


def event(row: Event) -> JsonObject:
    return {
        "id": row.id,
        "object": "fine_tuning.job.event",
        "created_at": seconds(row.created_at),
        "level": row.level,
        "message": row.message,
        "type": row.type,
        "data": {"code": row.code, **(row.data or {})},
    }


def checkpoint(row: Checkpoint) -> JsonObject:
    return {
        "id": row.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": seconds(row.created_at),
        "fine_tuning_job_id": row.job_id,
        "fine_tuned_model_checkpoint": row.name,
        "step_number": row.step,
        "metrics": {k: v for k, v in row.metrics.items() if v is not None},
        "bytes": row.bytes,
        "best": row.best,
        "pinned": row.pinned,
    }


def metric(row: Metric) -> JsonObject:
    """A step's numbers; evaluation's only on the steps that evaluated, rewards only of preference pairs."""
    body: dict[str, Any] = {
        "step": row.step,
        "epoch": row.epoch_progress,
        "loss": row.loss,
        "learning_rate": row.learning_rate,
        "grad_norm": row.grad_norm,
        "tokens": row.tokens,
        "trained_tokens": row.trained_tokens,
        "tokens_per_second": row.tokens_per_second,
        "memory_bytes": row.memory_bytes,
        "skipped": row.skipped,
        "created_at": seconds(row.created_at),
    }
    if row.valid_loss is not None:
        body["valid_loss"] = row.valid_loss
        body["valid_perplexity"] = row.valid_perplexity
        body["valid_accuracy"] = row.valid_accuracy
    rewards = {name: getattr(row, name) for name in REWARDS}
    return body | {name: value for name, value in rewards.items() if value is not None}


def checkpoint_permission(row: CheckpointPermission) -> JsonObject:
    return {
        "id": row.id,
        "object": "checkpoint.permission",
        "created_at": seconds(row.created_at),
        "project_id": row.project_id,
    }


def webhook_endpoint(row: WebhookEndpoint, secret: str | None = None) -> JsonObject:
    """With its secret only where it was made a moment ago."""
    body: JsonObject = {
        "id": row.id,
        "object": "webhook_endpoint",
        "created_at": seconds(row.created_at),
        "updated_at": seconds(row.updated_at),
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": row.secret_hint,
        # Ours
        "disabled": row.disabled_at is not None,
    }
    if secret is not None:
        body["signing_secret"] = secret
    return body


def webhook_delivery(row: WebhookDelivery) -> JsonObject:
    return {
        "id": row.id,
        "object": "webhook_delivery",
        "created_at": seconds(row.created_at),
        "webhook_endpoint_id": row.endpoint_id,
        "event": json.loads(row.body),
        "status": row.status,
        "attempts": row.attempts,
        "next_attempt_at": seconds(row.due_at) if row.status == "pending" else None,
        "ended_at": seconds(row.ended_at),
        "log": row.log,
    }


def base_model(source: Source) -> JsonObject:
    return {
        "id": source.name,
        "object": "model",
        "created": seconds(source.created),
        "owned_by": source.owned_by,
    }


def tuned_model(row: Model) -> JsonObject:
    return {
        "id": row.name,
        "object": "model",
        "created": seconds(row.created_at),
        "owned_by": row.owner,
        "base_model": row.base,
        "job": row.job_id,
        "bytes": row.bytes,
    }
