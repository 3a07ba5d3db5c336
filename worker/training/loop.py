"""The training loop: one page, in the order things happen."""

import math
import time
from collections.abc import Iterator

from worker.training.accumulate import accumulate, halve
from worker.training.events import Event, Step
from worker.training.failure import TIME_OVER, Failure, Stopped
from worker.training.finish import finish, save
from worker.training.job import Job
from worker.training.prepare import Parts, prepare
from worker.training.pulse import Pulse
from worker.training.verdict import due_for_evaluation, evaluate_now, reason_to_end, refuse_non_finite


def train(job: Job, pulse: Pulse) -> Iterator[Event]:
    """Trains, and states what happens as it happens.

    Raises Failure where there can be no model, and Stopped once SIGTERM came and a checkpoint is safe.
    """
    for stated in prepare(job, pulse):
        if isinstance(stated, Parts):
            parts = stated
        else:
            yield stated
    plan, progress, optimization, device = parts.plan, parts.progress, parts.optimization, parts.model.device
    saved_at, stopping = progress.step, False
    while True:
        # Evaluate, save, stop: in this order, so that a checkpoint knows its own score.
        best = False
        if due_for_evaluation(parts) and not stopping:
            try:
                best = yield from evaluate_now(parts, pulse)
            except Stopped:
                stopping = True  # evaluated again after the resume
        over = reason_to_end(parts)
        due = progress.step % plan.save_steps == 0
        if progress.step != saved_at and (due or best or over or stopping):
            yield from save(parts, best=best, final=over is not None)
            saved_at = progress.step
        if stopping or over:
            break

        # One step: forward and backward of every micro-batch, then a single update.
        began = time.monotonic()
        rate = optimization.learning_rate
        done = accumulate(parts, pulse)
        if done.out_of_memory:
            yield halve(parts)
            continue
        if done.dropped:
            stopping = True  # no weight has changed
            continue
        device.add_up(optimization.gradients())
        norm = optimization.clip()
        refuse_non_finite(parts, done.loss, norm)
        updated = optimization.update()
        optimization.clear()

        # Advance and report.
        seconds = time.monotonic() - began
        progress.advance(done.loss, done.over, done.trained, device.agree(seconds), updated)
        yield Step(
            step=progress.step,
            epoch=plan.epoch(progress.step),
            loss=done.loss / done.over,
            learning_rate=rate,
            grad_norm=norm if math.isfinite(norm) else None,
            tokens=done.tokens,
            trained_tokens=progress.trained_tokens,
            tokens_per_second=done.tokens / seconds,
            memory_bytes=device.memory(),
            skipped=not updated,
            rewards=done.rewards,
        )
        yield from parts.saver.done()
        stopping = done.asked

    yield from parts.saver.wait()
    device.barrier(pulse.tick)  # torchrun gives those who write half a minute once another is gone
    if over is None:
        raise Stopped
    if over == "max_runtime":
        raise Failure(
            "max_runtime_exceeded", "The job's max_runtime is over; a checkpoint is saved.", TIME_OVER
        )
    yield from finish(parts, over)
