"""`python -m benchmarks.start`: from a claim to the first step, with a warm trainer and with a cold one.

The built-in model on the examples, several times; the data is encoded anew each time. The last line is one
JSON document with the medians in seconds.
"""

import json
import queue
import statistics
import tempfile
import time
from pathlib import Path

from app.journal import configure_logs
from app.recipe import Recipe
from app.tiny import model as tiny
from worker.launch import Trainer
from worker.training import events

EXAMPLES = Path(__file__).parent.parent / "examples" / "dishes.jsonl"
TIMES = 5


def until(trainer: Trainer, kind: type[events.Event]) -> float:
    """Seconds until it states an event of that kind. Raises RuntimeError where it ends before."""
    began = time.perf_counter()
    while True:
        try:
            event = trainer.next_event(60)
        except queue.Empty:
            raise RuntimeError("the trainer says nothing") from None
        if event is None:
            raise RuntimeError("\n".join(trainer.last_lines))
        if isinstance(event, kind):
            return time.perf_counter() - began


def start(folder: Path, *, warm: bool) -> float:
    """Seconds from handing the job over to its first step's event."""
    recipe = Recipe.from_request({"max_steps": 1, "total_train_batch_size": 8})
    began = time.perf_counter()
    trainer = Trainer()
    if warm:
        until(trainer, events.Ready)
        began = time.perf_counter()
    trainer.begin(
        {
            "recipe": recipe.model_dump(mode="json"),
            "data": str(EXAMPLES),
            "model": str(tiny.ensure(folder / "tiny-gpt2")),
            "out": tempfile.mkdtemp(dir=folder),
        }
    )
    until(trainer, events.Step)
    seconds = time.perf_counter() - began
    trainer.stop()
    trainer.end()
    return seconds


def main() -> None:
    configure_logs("warning")
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: [start(Path(folder), warm=warm) for _ in range(TIMES)]
            for name, warm in (("warm", True), ("cold", False))
        }
    for name, times in found.items():
        print(f"{name}  {' '.join(f'{seconds:.2f}' for seconds in times)}  seconds to the first step")
    print(json.dumps({name: statistics.median(times) for name, times in found.items()}))


if __name__ == "__main__":
    main()
