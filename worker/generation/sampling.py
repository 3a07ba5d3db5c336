"""From logits to tokens: penalties and bias, then temperature, top_k, top_p, min_p, then one draw.

Each sequence draws from its own random stream, by inverse transform in the order of the vocabulary: a choice
depends on its seed and its own probabilities alone, not on what else is in the batch. (Drawing in order of
probability would not do: two nearly equal tokens change places when a sum is rounded differently.)
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

# What top_p keeps is nearly always within so many tokens; sorting 50,257 takes 5 ms on a CPU, this 0.2.
NUCLEUS = 1024


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the defaults change nothing. Ranges are checked by the API.

    `bias` is added to the logits of its token ids. `repetition_penalty` is Hugging Face's (over prompt and
    answer), the presence and frequency penalties are OpenAI's (over the answer alone).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    @property
    def adjusts(self) -> bool:
        return bool(
            self.bias
            or self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


class Sampler:
    """The state of one sequence: its random stream and the tokens that its penalties count."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], choice: int) -> None:
        self.sampling = sampling
        self.counts: Counter[int] = Counter()
        self._prompt = frozenset(prompt) if sampling.repetition_penalty != 1 else frozenset()
        # Choice 0 of a seeded request is the same whatever n is.
        seed = None if sampling.seed is None else f"{sampling.seed}/{choice}"
        self._random = random.Random(seed)  # noqa: S311  # reproducible, not secret

    def uniform(self) -> float:
        return self._random.random()

    def adjust(self, logits: torch.Tensor) -> None:
        """Apply penalties and bias to one row of logits (vocabulary size), in place."""
        how = self.sampling
        if how.repetition_penalty != 1:
            ids = sorted(self._prompt | self.counts.keys())
            seen = torch.tensor(ids, dtype=torch.long, device=logits.device)
            scores = logits[seen]
            logits[seen] = torch.where(
                scores < 0, scores * how.repetition_penalty, scores / how.repetition_penalty
            )
        if self.counts and (how.presence_penalty or how.frequency_penalty):
            written = torch.tensor(list(self.counts), device=logits.device)
            times = torch.tensor(list(self.counts.values()), dtype=torch.float32, device=logits.device)
            logits[written] -= how.presence_penalty + how.frequency_penalty * times
        if how.bias:
            biased = torch.tensor(list(how.bias), device=logits.device)
            logits[biased] += torch.tensor(list(how.bias.values()), dtype=torch.float32, device=logits.device)


def choose(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """One token for each row of `logits` (rows, vocabulary size), float32, which stay as they are."""
    if any(sampler.sampling.adjusts for sampler in samplers):
        logits = logits.clone()
        for row, sampler in enumerate(samplers):
            if sampler.sampling.adjusts:
                sampler.adjust(logits[row])
    tokens: list[int] = logits.argmax(-1).tolist()
    drawn = [row for row, sampler in enumerate(samplers) if not sampler.sampling.greedy]
    if drawn:
        chosen = _draw(logits[drawn], [samplers[row] for row in drawn])
        for row, token in zip(drawn, chosen, strict=True):
            tokens[row] = token
    for token, sampler in zip(tokens, samplers, strict=True):
        sampler.counts[token] += 1
    return tokens


def _draw(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    how = [sampler.sampling for sampler in samplers]
    scaled = logits / column([each.temperature for each in how])
    _keep_top_k(scaled, [each.top_k for each in how])
    probabilities = scaled.softmax(-1)
    _keep_top_p(probabilities, [each.top_p for each in how])
    if any(each.min_p for each in how):
        least = probabilities.amax(-1, keepdim=True) * column([each.min_p for each in how])
        probabilities.masked_fill_(probabilities < least, 0)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    # Below 1 by 2**-53 at least: times a sum it stays below that sum, rounded too, so it never points past
    # the last token that is allowed.
    draws = [[sampler.uniform()] for sampler in samplers]
    points = torch.tensor(draws, dtype=torch.float64, device=logits.device) * cumulative[:, -1:]
    chosen: list[int] = torch.searchsorted(cumulative, points, right=True)[:, 0].tolist()
    return chosen


def _keep_top_k(scores: torch.Tensor, ks: Sequence[int]) -> None:
    """-inf for all that is below the k-th best; equals of the k-th stay, as in Hugging Face's warper."""
    for row, k in enumerate(ks):
        if 0 < k < scores.shape[-1]:
            threshold = scores[row].topk(k).values[-1]
            scores[row].masked_fill_(scores[row] < threshold, float("-inf"))


def _keep_top_p(probabilities: torch.Tensor, shares: Sequence[float]) -> None:
    """0 for all but the smallest set of best tokens whose sum reaches the share; the best always stays."""
    for row, share in enumerate(shares):
        if share >= 1:
            continue
        each = probabilities[row]
        ranked, order = each.topk(min(NUCLEUS, each.shape[0]))
        if ranked.sum() < share:
            ranked, order = each.sort(descending=True)
        reached = ranked.cumsum(-1) - ranked >= share
        reached[0] = False
        kept = ranked.masked_fill(reached, 0)
        each.zero_()
        each[order] = kept
