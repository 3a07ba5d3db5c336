"""The worker whose connection to the broker waits for ever, as Celery's do by default."""

from datetime import timedelta

from tests.chaos import worker
from worker import main, presence

celery = worker.celery
celery.conf.broker_transport_options = {"global_keyprefix": "ft:"}
# The real one waits a minute for kombu to help itself.
presence.CAREFUL = timedelta(seconds=5)
main.presence.patience = presence.CAREFUL
