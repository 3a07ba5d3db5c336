"""The gradient of one step, a micro-batch at a time, on every device."""

from dataclasses import dataclass

from worker.training.events import Notice
from worker.training.failure import is_out_of_memory
from worker.training.prepare import Parts
from worker.training.pulse import Pulse


@dataclass(frozen=True)
class Accumulated:
    """One step's sums over all micro-batches and processes."""

    loss: float
    tokens: int
    trained: int
    out_of_memory: bool
    dropped: bool  # asked to stop in the middle: no weight may change
    asked: bool  # some process was asked to stop


def accumulate(parts: Parts, pulse: Pulse) -> Accumulated:
    """Gradients of the mean loss over all trained tokens of the step, whatever its split.

    The number of tokens is known before the first forward pass, so each micro-batch is scaled right at once.
    When memory runs out, or a process alone is asked to stop, the gradients are dropped.
    """
    device, model, progress = parts.model.device, parts.model, parts.progress
    everything = [parts.train.example(i) for i in parts.plan.indices(progress.step)]
    trained = sum(int(mask.sum()) for _, mask in everything)
    scale = parts.optimization.scale / trained
    mine = everything[device.rank :: device.world]
    device.seed(parts.plan.seed, progress.step)
    losses, failed, dropped = [], False, False
    try:
        for at in range(0, len(mine), progress.micro):
            if pulse.asked and device.world == 1:
                dropped = True
                break
            batch = model.lay(mine[at : at + progress.micro], parts.max_length)
            losses.append(model.learn(batch, scale))
            pulse.tick()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed = True
    own = 0.0 if failed else float(sum(losses))
    # Every process hears what happened to the others, so all of them drop the step or none.
    loss, out_of_memory, asked = device.total([own, failed, pulse.asked])
    if out_of_memory or dropped:
        parts.optimization.clear()
    tokens = sum(len(ids) for ids, _ in everything)
    return Accumulated(loss, tokens, trained, bool(out_of_memory), dropped, bool(asked))


def halve(parts: Parts) -> Notice:
    """Less at a time, more often: the mathematics stays, the memory shrinks.

    Raises MemoryError when one example at a time was too much.
    """
    progress = parts.progress
    if progress.micro == 1:
        raise MemoryError
    progress.micro = -(-progress.micro // 2)
    parts.model.device.free()
    message = (
        f"Out of memory; going on with {progress.micro} examples per micro-step. The result is the same."
    )
    data = {"train_batch_size": progress.micro, "step": progress.step + 1}
    return Notice("warn", "micro_batch_halved", message, data)
