"""transformers' schedules, without what transformers loads along with them.

They need the names of its Trainer, which loads PEFT wherever that is installed: a part of a trainer's start
that every job pays for. Only a Trainer asks whether a model is PEFT's; jobs that train by LoRA load it
themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import utils as _utils

utils: Any = _utils  # whose list of names is made when it is loaded


@contextmanager
def _without_peft() -> Iterator[None]:
    found = utils.is_peft_available
    utils.is_peft_available = lambda: False
    try:
        yield
    finally:
        utils.is_peft_available = found


with _without_peft():
    from transformers import get_scheduler

__all__ = ["get_scheduler"]
