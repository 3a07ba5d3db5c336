"""What a job leaves behind: checkpoints on the way, the model at the end."""

from collections.abc import Iterator

from worker.training import card, folder
from worker.training.events import Event, Finished, Notice, Saved
from worker.training.prepare import Parts
from worker.training.verdict import keeps_best


def save(parts: Parts, best: bool, final: bool) -> list[Saved]:
    """Copies everything to the host and lets the saver write it; returns the save before, now safe."""
    progress, device = parts.progress, parts.model.device
    if device.rank and not device.sharded:
        return []
    last = progress.evaluations[-1] if progress.evaluations else {}
    metrics = {} if progress.last_loss is None else {"train_loss": progress.last_loss}
    if last.get("step") == progress.step and last.get("loss") is not None:
        metrics["full_valid_loss"] = last["loss"]
        if last["accuracy"] is not None:
            metrics["full_valid_mean_token_accuracy"] = last["accuracy"]
        metrics |= {
            f"full_valid_{k}": v for k, v in last.items() if k.startswith("reward_") and v is not None
        }
    write = folder.snapshot(parts.model.network, parts.adapted, parts.optimization, parts.template, parts.job)
    if device.rank:  # it gave its parts
        return []
    return parts.saver.save(write, progress, metrics, best or progress.best_step == progress.step, final)


def finish(parts: Parts, reason: str) -> Iterator[Event]:
    """Publishes the last checkpoint, or the best one where the recipe keeps it."""
    progress, job, device = parts.progress, parts.job, parts.model.device
    if device.rank:
        return
    step = progress.best_step if keeps_best(parts) and progress.best_step else progress.step
    known = [job.out / "checkpoints" / f"step-{step}", *(p for p in job.resume if p.name == f"step-{step}")]
    chosen = next((path for path in known if path.is_dir()), None)
    if chosen is None:
        chosen = job.out / "checkpoints" / f"step-{progress.step}"
        message = f"The best checkpoint (step {step}) is gone; publishing the last."
        yield Notice("warn", "best_checkpoint_gone", message)
    if parts.adapted:
        difference = folder.check_merge(parts.model, parts.adapted, chosen, job)
        message = "The merged model gives the adapter's logits."
        yield Notice("info", "merged", message, {"difference": difference})
    lines = card.hyperparameters(parts.recipe, device.precision, device.world)
    text = card.write(job.name, job.base_name, lines, progress.evaluations, parts.adapted is not None)
    path, digest = folder.publish(chosen, job.out, text)
    best = (progress.best_step, progress.best_loss)
    yield Finished(progress.step, reason, str(path), digest, progress.trained_tokens, *best)
