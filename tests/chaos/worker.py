"""`celery -A tests.chaos.worker`: the worker as it is, with trainers that live for a second."""

from tests.chaos.worker_command import STAND_IN
from worker import main
from worker.launch import Trainer, WarmTrainers

celery = main.celery
main.runtime.trainers = WarmTrainers(lambda: Trainer(STAND_IN))
