"""A job's result file: its metrics as CSV, written once, when it succeeds."""

from typing import Any

import structlog
from sqlalchemy import text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.lifecycle.claims import Claim
from app.lifecycle.history import note
from app.storage import Store, Upload
from app.tables import File, Job

log = structlog.get_logger()
# OpenAI's names where it has them, ours for the rest. What was not measured is empty, as everywhere in CSV.
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


def attach(session: Session, store: Store, held: Claim, owner: str) -> None:
    """The file and its row, in the transaction in which the job succeeds.

    The key carries the epoch, so nobody else writes it; the same attempt again replaces its own bytes. What
    goes wrong on the disk costs the file, not the model: an event says so.
    """
    file_id = f"file-{held.job_id.removeprefix('ftjob-')}-results"
    key = f"files/{file_id}-e{held.epoch}"
    try:
        with store.upload(key) as upload:
            rows = _copy(session, upload, held.job_id)
            upload.commit()
    except OSError as error:
        log.warning("results_not_written", job_id=held.job_id, error=str(error))
        message = f"The result file could not be written: {error.strerror or error} The metrics are all here."
        note(session, held.job_id, "warn", "results_not_written", message)
        return
    values = {
        "id": file_id,
        "owner": owner,
        "key": key,
        "bytes": upload.bytes,
        "sha256": upload.sha256,
        "filename": "step_metrics.csv",
        "purpose": "fine-tune-results",
        "format": "csv",
        "status": "processed",
        "rows": rows,
    }
    session.execute(insert(File).values(values))
    session.execute(update(Job).where(Job.id == held.job_id).values(result_file=file_id))


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
