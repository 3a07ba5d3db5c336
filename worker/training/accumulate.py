"""The gradient of one step, a micro-batch at a time, on every device."""

from dataclasses import dataclass

import torch

from worker.training.events import Notice, Rewards
from worker.training.failure import Cramped, is_out_of_memory
from worker.training.prepare import Parts
from worker.training.pulse import Pulse


@dataclass(frozen=True)
class Accumulated:
    """One step's sums over all micro-batches and processes."""

    loss: float
    over: int  # what its mean is over: trained tokens, or preference pairs
    rewards: Rewards | None
    tokens: int
    trained: int
    out_of_memory: bool
    dropped: bool  # asked to stop in the middle: no weight may change
    asked: bool  # some process was asked to stop


def accumulate(parts: Parts, pulse: Pulse) -> Accumulated:
    """Gradients of the mean loss over all trained tokens, or pairs, of the step, whatever its split.

    Their number is known before the first forward pass, so each micro-batch is scaled right at once.
    When memory runs out, or a process alone is asked to stop, the gradients are dropped.
    """
    device, model, progress = parts.model.device, parts.model, parts.progress
    everything = [parts.train.unit(i) for i in parts.plan.indices(progress.step)]
    examples = [example for unit in everything for example in unit.examples]
    trained = sum(int(mask.sum()) for _, mask in examples)
    over = model.objective.over(len(everything), trained)
    scale = parts.optimization.scale / over
    mine = everything[device.rank :: device.world]
    device.seed(parts.plan.seed, progress.step)
    sums, failed, dropped = [], False, False
    try:
        for turn in range(device.rounds(len(everything), progress.micro)):
            if pulse.asked and device.world == 1:
                dropped = True
                break
            part = mine[turn * progress.micro : (turn + 1) * progress.micro]
            # Without one of our own we help the others to gather their weights, and add nothing.
            batch = model.lay(part or everything[:1], parts.max_length)
            learned = model.learn(batch, scale if part else 0.0)
            sums.extend([learned] if part else [])
            pulse.tick()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed = True
    if failed and device.sharded:  # the others wait in the middle of a step, and nothing would match
        raise Cramped(halve(parts))
    own = (
        [0.0] * model.objective.learned if failed or not sums else torch.stack(sums).double().sum(0).tolist()
    )
    # Every process hears what happened to the others, so all of them drop the step or none.
    *added, out_of_memory, asked = device.total([*own, failed, pulse.asked])
    if out_of_memory or dropped:
        parts.optimization.clear()
    return Accumulated(
        loss=added[0],
        over=over,
        rewards=model.objective.rewards([value / over for value in added]),
        tokens=sum(len(ids) for ids, _ in examples),
        trained=trained,
        out_of_memory=bool(out_of_memory),
        dropped=dropped,
        asked=bool(asked),
    )


def halve(parts: Parts) -> Notice:
    """Less at a time, more often: the mathematics stays, the memory shrinks.

    Raises MemoryError when one example at a time was too much.
    """
    progress = parts.progress
    if progress.micro == 1:
        raise MemoryError
    progress.micro = -(-progress.micro // 2)
    parts.model.device.free()
    going_on = "starting again from the last checkpoint" if parts.model.device.sharded else "going on"
    message = (
        f"Out of memory; {going_on} with {progress.micro} examples per micro-step. The result is the same."
    )
    data = {"train_batch_size": progress.micro, "step": progress.step + 1}
    return Notice("warn", "micro_batch_halved", message, data)
