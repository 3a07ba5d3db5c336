"""Validation loss, accuracy and samples: what the model can do, measured without changing it."""

import math
from collections.abc import Callable

from app.encoding import Encoder
from app.recipe import Recipe
from worker.training.data import Share
from worker.training.events import Evaluated, Sampled
from worker.training.model import Model


def evaluate(
    model: Model, data: Share, size: int, max_length: int, step: int, epoch: float, beat: Callable[[], None]
) -> Evaluated:
    """The mean loss over the trained tokens, or the pairs, of all examples, `size` examples at a time.

    A mean over tokens or pairs, not over batches: it does not depend on `size`. `beat` is called between
    batches.
    """
    device, objective = model.device, model.objective
    over = tokens = 0.0
    sums = [0.0] * objective.scored
    for turn in range(device.rounds(len(data), size)):
        beat()
        mine = range(len(data))[device.rank :: device.world][turn * size : (turn + 1) * size]
        units = [data.unit(i) for i in mine or [0]]
        batch = model.lay(units, max_length)
        found = model.score(batch).tolist()
        if not mine:  # the others still have some, and need us to gather weights
            continue
        sums = [a + b for a, b in zip(sums, found, strict=True)]
        over += objective.over(len(units), len(batch.targets))
        tokens += len(batch.targets)
    *sums, count, tokens = device.total([*sums, over, tokens])
    means = [value / count if math.isfinite(value) else math.nan for value in sums]
    perplexity, accuracy = objective.quality(means)
    return Evaluated(step, epoch, means[0], perplexity, accuracy, int(tokens), objective.rewards(means))


def sample(model: Model, encoder: Encoder, recipe: Recipe, step: int) -> Sampled:
    """Greedy continuations of the recipe's prompts, and the share that ended by itself."""
    samples = []
    for prompt in recipe.sample_prompts:
        written = model.write(encoder.prompt(prompt), recipe.sample_max_tokens)
        ended = bool(written) and written[-1] == encoder.end
        samples.append({"prompt": prompt, "text": encoder.tokenizer.decode(written), "ended": ended})
    return Sampled(step, samples, sum(bool(s["ended"]) for s in samples) / len(samples))
