"""What `celery -A worker.main worker` loads: the Celery app with its one task, put together."""

import os
import secrets
import socket
import threading
import time
from typing import Any

import structlog
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError

from app.database import WorkerDatabase
from app.journal import configure_logs
from app.queue import TRAIN, make_celery
from app.settings import Settings
from app.storage import Store
from app.tables import Worker, now
from worker import tasks
from worker.launch import WarmTrainers

log = structlog.get_logger()
settings = Settings()
configure_logs(settings.log_level)
celery = make_celery(settings)
runtime = tasks.Runtime(
    settings=settings,
    database=WorkerDatabase(settings),
    store=Store(settings.storage_folder),
    trainers=WarmTrainers(),
    worker=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}",
)


@celery.task(name=TRAIN)  # type: ignore[untyped-decorator]  # Celery ships no types
def train(job_id: str) -> None:
    """One message, one try to claim; the row says whether there is anything to do."""
    structlog.contextvars.bind_contextvars(job_id=job_id)
    try:
        tasks.train(runtime, job_id)
    except Exception:
        # Never let Celery decide about a job: the lease runs out and the sweep finds it.
        log.exception("attempt_crashed", job_id=job_id)
    finally:
        structlog.contextvars.clear_contextvars()


def _tell_presence() -> None:
    """Write the worker's row every heartbeat, for as long as the process lives."""
    while True:
        values = {
            "host": socket.gethostname(),
            "slots": settings.worker_slots,
            "busy": runtime.busy,
            "version": "0.1.0",
            "draining": runtime.draining.is_set(),
        }
        statement = insert(Worker).values(id=runtime.worker, **values)
        try:
            with runtime.database.transaction() as session:
                session.execute(
                    statement.on_conflict_do_update(index_elements=["id"], set_={**values, "seen_at": now})
                )
        except (SQLAlchemyError, OSError) as error:
            log.warning("presence_not_told", error=type(error).__name__)
        time.sleep(settings.heartbeat.total_seconds())


@worker_ready.connect  # type: ignore[untyped-decorator]
def _begin(**_: Any) -> None:
    runtime.trainers.prepare()
    threading.Thread(target=_tell_presence, name="presence", daemon=True).start()
    log.info("worker_ready", worker=runtime.worker, slots=settings.worker_slots)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain(**_: Any) -> None:
    """SIGTERM: each supervisor saves its trainer's state and gives the job back, at no attempt's cost."""
    log.info("draining", worker=runtime.worker)
    runtime.draining.set()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _end(**_: Any) -> None:
    runtime.trainers.close()
    runtime.database.close()
