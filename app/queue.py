"""The Celery app, its settings with their reasons, and `announce`: a message is a task name and a job id.

Redis may lose, double or delay messages and nothing but time is lost: the row decides (app/lifecycle), the
dispatcher announces again what nobody claimed.
"""

from datetime import timedelta
from urllib.parse import urlsplit

import redis
import redis.asyncio
from celery import Celery

from app.settings import Settings

TRAIN = "worker.train"
QUEUE = "gpu"
# A worker whose clock says that a message is older drops it: long, because clocks differ, and not for ever,
# because messages would pile up while no worker runs.
MESSAGE_LIFE = timedelta(hours=1)


def broker_url(settings: Settings) -> str:
    """Celery's spelling of the Redis URL: a Unix socket is `redis+socket://` to it.

    Raises RuntimeError where none is set.
    """
    if settings.redis_url is None:
        raise RuntimeError("REDIS_URL is not set; `finetuned up` starts a Valkey of its own")
    url = settings.redis_url.get_secret_value()
    if url.startswith("unix:"):
        parts = urlsplit(url)
        return f"redis+socket://{parts.netloc}{parts.path}" + (f"?{parts.query}" if parts.query else "")
    return url


def make_celery(settings: Settings, patience: int = 15) -> Celery:
    """`patience`: seconds that the broker may take to answer; a worker's must exceed BRPOP's 1 s by far."""
    celery = Celery("finetuned", broker=broker_url(settings), set_as_current=False)
    celery.conf.update(
        # The main loop stays free to hear SIGTERM, and nothing forks CUDA or psycopg; children do the work.
        worker_pool="threads",
        worker_concurrency=settings.worker_slots,
        # A claim with a lease does redelivery. Late acknowledgement over Redis would hand a job that trains
        # for longer than the visibility timeout to a second worker, and a third.
        task_acks_late=False,
        task_reject_on_worker_lost=False,  # loops without an end
        task_retry_on_worker_lost=False,  # retries behind our back; attempts are counted in the row
        # With prefetching a second job would sit reserved behind a day-long one.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # True from Celery 6 on: then a hiccup of Redis would stop training.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        broker_transport_options={
            # None, the default, hangs for ever on a half-open connection.
            "socket_timeout": patience,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # Only counts for messages fetched and not yet acknowledged: milliseconds here.
            "visibility_timeout": 3600,
            # A Redis may be shared.
            "global_keyprefix": "ft:",
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # the default gives up after 100 tries
        # Only the dispatcher publishes, and it tries again anyway.
        task_publish_retry_policy={"max_retries": 2, "interval_start": 0, "interval_max": 0.5},
        # Status lives in Postgres; result keys would only leak.
        task_ignore_result=True,
        result_backend=None,
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],  # pickle is refused
        # Nothing asks a worker anything through Redis, so nobody who reaches Redis can command one.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        task_create_missing_queues=False,  # a typing error must not make a queue that nobody reads
        task_queues={QUEUE: {"exchange": QUEUE, "routing_key": QUEUE}},
        task_default_queue=QUEUE,
        worker_soft_shutdown_timeout=60,
        worker_hijack_root_logger=False,
        task_track_started=False,
    )
    return celery


def announce(celery: Celery, job_id: str) -> None:
    """Publish one message. Raises kombu's OperationalError when the broker cannot be reached."""
    celery.send_task(TRAIN, args=[job_id], queue=QUEUE, expires=MESSAGE_LIFE.total_seconds())


async def answers(settings: Settings, within: float) -> bool:
    """Whether the broker answers in so many seconds; by a connection of its own, never through a thread that
    a broker which swallows everything would keep."""
    url = broker_url(settings).replace("redis+socket://", "unix://", 1)
    client = redis.asyncio.Redis.from_url(url, socket_timeout=within, socket_connect_timeout=within)
    try:
        await client.ping()
    except (redis.RedisError, OSError):
        return False
    finally:
        await client.aclose()
    return True
