"""A job's result file: its metrics as CSV, written once, when it succeeds."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.lifecycle.claims import Claim
from app.lifecycle.history import note
from app.storage import Store, Upload
from app.tables import File, Job, Metric
from worker import tensorboard

log = structlog.get_logger()
# OpenAI's names where it has them, ours for the rest. What was not measured is empty, as everywhere in CSV.
TAGS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "reward_chosen": "train/reward_chosen",
    "reward_rejected": "train/reward_rejected",
    "reward_margin": "train/reward_margin",
    "reward_accuracy": "train/reward_accuracy",
    "valid_loss": "valid/loss",
    "valid_perplexity": "valid/perplexity",
    "valid_accuracy": "valid/accuracy",
    "valid_reward_chosen": "valid/reward_chosen",
    "valid_reward_rejected": "valid/reward_rejected",
    "valid_reward_margin": "valid/reward_margin",
    "valid_reward_accuracy": "valid/reward_accuracy",
}
COPY = """
COPY (
  SELECT
    step, epoch_progress AS epoch, loss AS train_loss, learning_rate, grad_norm, tokens, trained_tokens,
    tokens_per_second, valid_loss, valid_perplexity, valid_accuracy AS valid_mean_token_accuracy,
    reward_chosen, reward_rejected, reward_margin, reward_accuracy,
    valid_reward_chosen, valid_reward_rejected, valid_reward_margin, valid_reward_accuracy
  FROM metrics WHERE job_id = %s ORDER BY step
) TO STDOUT (FORMAT csv, HEADER)
"""


Write = Callable[[Session, Upload, str], int]


def attach(session: Session, store: Store, held: Claim, owner: str) -> None:
    """The files and their rows, in the transaction in which the job succeeds: the table, and where the job
    asked for `tensorboard` its event file, whose id is told in that integration."""
    job = session.get_one(Job, held.job_id)
    file_id = _file(session, store, held, owner, "results", "step_metrics.csv", _copy)
    if file_id is not None:
        session.execute(update(Job).where(Job.id == held.job_id).values(result_file=file_id))
    asked = [dict(one) for one in job.integrations or ()]
    for one in asked:
        if one["type"] == "tensorboard":
            name = f"events.out.tfevents.{int(job.created_at.timestamp())}.{held.job_id}"
            one["file_id"] = _file(session, store, held, owner, "tensorboard", name, _draw)
    if asked:
        session.execute(update(Job).where(Job.id == held.job_id).values(integrations=asked))


def _file(
    session: Session, store: Store, held: Claim, owner: str, kind: str, filename: str, write: Write
) -> str | None:
    """A result file's id; None where the disk did not take it.

    The key carries the epoch, so nobody else writes it; the same attempt again replaces its own bytes. What
    goes wrong on the disk costs the file, not the model: an event says so.
    """
    file_id = f"file-{held.job_id.removeprefix('ftjob-')}-{kind}"
    key = f"files/{file_id}-e{held.epoch}"
    try:
        with store.upload(key) as upload:
            rows = write(session, upload, held.job_id)
            upload.commit()
    except OSError as error:
        log.warning("results_not_written", job_id=held.job_id, error=str(error))
        message = f"The result file could not be written: {error.strerror or error} The metrics are all here."
        note(session, held.job_id, "warn", "results_not_written", message)
        return None
    values = {
        "id": file_id,
        "owner": owner,
        "key": key,
        "bytes": upload.bytes,
        "sha256": upload.sha256,
        "filename": filename,
        "purpose": "fine-tune-results",
        "format": "csv",
        "status": "processed",
        "rows": rows,
    }
    session.execute(insert(File).values(values))
    return file_id


def _draw(session: Session, upload: Upload, job_id: str) -> int:
    """The same numbers for TensorBoard; how many steps."""
    steps = session.scalars(
        select(Metric).where(Metric.job_id == job_id).order_by(Metric.step).execution_options(yield_per=1000)
    )
    rows = 0

    def measured() -> Iterator[tensorboard.Row]:
        nonlocal rows
        for row in steps:
            values = {tag: getattr(row, name) for name, tag in TAGS.items() if getattr(row, name) is not None}
            rows += 1
            yield row.step, row.created_at.timestamp(), values

    for record in tensorboard.event_file(measured(), time.time()):
        upload.write(record)
    return rows


def _copy(session: Session, upload: Upload, job_id: str) -> int:
    """Stream the table's rows into the file, a chunk at a time; how many there were."""
    # A million steps take seconds; on a slow disk they may take longer than any other statement.
    session.execute(text("SET LOCAL statement_timeout = '10min'"))
    connection: Any = session.connection().connection.driver_connection
    with connection.cursor() as cursor:
        with cursor.copy(COPY, (job_id,)) as copy:
            for data in copy:
                upload.write(bytes(data))
        return int(cursor.rowcount)
