"""What `celery -A worker.main worker` loads: the Celery app with its one task, put together."""

import os
import secrets
import socket
import threading
from typing import Any

import structlog
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down

from app.database import WorkerDatabase
from app.journal import configure_logs
from app.queue import TRAIN, make_celery
from app.settings import Settings
from worker import abilities, leftovers, tasks
from worker.launch import Trainer, WarmTrainers
from worker.presence import Presence
from worker.runtime import Runtime
from worker.start import cell_for, sound, usable_store

log = structlog.get_logger()
settings = Settings()
configure_logs(settings.log_level)
celery = make_celery(settings)
sound(settings)
store = usable_store(settings)
cell = cell_for(settings, store)
runtime = Runtime(
    settings=settings,
    database=WorkerDatabase(settings),
    store=store,
    trainers=WarmTrainers(lambda: Trainer(cell=cell), settings.trainer_nice),
    cell=cell,
    worker=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}",
    offer=abilities.offer(settings),
)


@celery.task(name=TRAIN)  # type: ignore[untyped-decorator]  # Celery ships no types
def train(job_id: str) -> None:
    """One message, one knock; the rows say what there is to do."""
    structlog.contextvars.bind_contextvars(message=job_id)
    try:
        tasks.train_all(runtime, job_id)
    except Exception:
        # Never let Celery decide about a job: the lease runs out and the sweep finds it.
        log.exception("attempt_crashed", job_id=job_id)
    finally:
        structlog.contextvars.clear_contextvars()


presence = Presence(runtime)


def _sweep() -> None:
    while not runtime.draining.is_set():
        try:
            leftovers.sweep(runtime.database, runtime.store)
        except Exception as error:  # it is tried again, and costs only room
            log.warning("leftovers_not_removed", error=str(error))
        runtime.draining.wait(leftovers.EVERY)


@worker_ready.connect  # type: ignore[untyped-decorator]
def _begin(**_: Any) -> None:
    runtime.trainers.prepare()
    presence.start()
    threading.Thread(target=_sweep, name="sweep", daemon=True).start()
    log.info("worker_ready", worker=runtime.worker, slots=settings.worker_slots)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _drain(**_: Any) -> None:
    """SIGTERM: each supervisor saves its trainer's state and gives the job back, at no attempt's cost."""
    log.info("draining", worker=runtime.worker)
    runtime.draining.set()


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _end(**_: Any) -> None:
    presence.close()
    runtime.trainers.close()
    runtime.database.close()
    runtime.tracing.close()
