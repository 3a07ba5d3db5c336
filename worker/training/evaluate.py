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
    """The mean loss over the trained tokens of all examples, `size` examples at a time.

    A mean over tokens, not over batches: it does not depend on `size`. `beat` is called between batches.
    """
    device = model.device
    loss = correct = tokens = 0.0
    for at in range(device.rank * size, len(data), device.world * size):
        beat()
        examples = [data.example(i) for i in range(at, min(at + size, len(data)))]
        batch = model.lay(examples, max_length)
        score = model.score(batch)
        loss, correct, tokens = (
            loss + float(score.loss),
            correct + float(score.correct),
            tokens + len(batch.targets),
        )
    loss, correct, tokens = device.total([loss, correct, tokens])
    mean = loss / tokens if math.isfinite(loss) else math.nan
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return Evaluated(step, epoch, mean, perplexity, correct / tokens, int(tokens))


def sample(model: Model, encoder: Encoder, recipe: Recipe, step: int) -> Sampled:
    """Greedy continuations of the recipe's prompts, and the share that ended by itself."""
    samples = []
    for prompt in recipe.sample_prompts:
        written = model.write(encoder.prompt(prompt), recipe.sample_max_tokens)
        ended = bool(written) and written[-1] == encoder.end
        samples.append({"prompt": prompt, "text": encoder.tokenizer.decode(written), "ended": ended})
    return Sampled(step, samples, sum(bool(s["ended"]) for s in samples) / len(samples))
