"""Token ids in, token ids out. One thread steps all models; requests join and leave between steps."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from worker.generation.batch import Batch, Capacity
from worker.generation.model import Model
from worker.generation.request import Ask, Sink, Ticket

log = logging.getLogger(__name__)


class Engine(Protocol):
    """What the server needs of an engine; `Stepper` is the one there is."""

    def submit(self, model: Model, asks: Sequence[Ask], sink: Callable[[int], Sink]) -> list[Ticket]:
        """Begin to answer; `sink(i)` makes the receiver of the events of `asks[i]`, called from the
        engine's thread and never blocking it."""
        ...

    def close(self) -> None:
        """Fail what is not answered yet and end."""
        ...


class Stepper:
    """Continuous batching: each turn of the loop writes one token of every sequence of every model."""

    def __init__(self, capacity: Capacity | None = None) -> None:
        self._capacity = capacity or Capacity()
        self._arrived: deque[tuple[Model, Ticket]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._batches: dict[int, Batch] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, model: Model, asks: Sequence[Ask], sink: Callable[[int], Sink]) -> list[Ticket]:
        request = object()
        tickets = [Ticket(ask, sink(place), request) for place, ask in enumerate(asks)]
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._arrived.extend((model, ticket) for ticket in tickets)
            self._changed.notify()
        return tickets

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while self._take_arrivals():
            self._turn_all()
        for batch in self._batches.values():
            batch.fail("The generator is stopping.")

    def _take_arrivals(self) -> bool:
        """Sleep while there is nothing to do; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._arrived or self._batches)
            while self._arrived:
                model, ticket = self._arrived.popleft()
                batch = self._batches.setdefault(id(model.weights), Batch(model, self._capacity))
                batch.waiting.append(ticket)
            return not self._closed

    def _turn_all(self) -> None:
        # Not in the loop above: its variables would keep the last model in memory while the engine sleeps.
        for key, batch in list(self._batches.items()):
            self._turn(key, batch)

    def _turn(self, key: int, batch: Batch) -> None:
        try:
            batch.turn()
        except Exception as error:
            # One model's trouble (memory, mostly) is its requests' alone; the other models go on.
            log.exception("a step of %s failed", batch.model.name)
            batch.fail(_told(error))
            del self._batches[key]
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            return
        if batch.idle:
            del self._batches[key]


def _told(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "The generator ran out of memory; ask for fewer or shorter choices."
    return "The generator failed at this request."
