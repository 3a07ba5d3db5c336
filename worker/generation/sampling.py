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

from worker.generation.grammar import Grammar

# What top_p keeps is nearly always within so many tokens; sorting 50,257 takes 5 ms on a CPU, this 0.2.
NUCLEUS = 1024
BLOCK = 256


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the defaults change nothing. Ranges are checked by the API.

    `bias` is added to the logits of its token ids. `repetition_penalty` is Hugging Face's (over prompt and
    answer), the presence and frequency penalties are OpenAI's (over the answer alone). `grammar` says
    which tokens may follow at all.
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
    grammar: Grammar | None = None

    @property
    def greedy(self) -> bool:
        # Logits over less than a millionth are beyond float32: a draw from them would fail the whole batch.
        return self.temperature < 1e-6 or self.top_k == 1

    @property
    def narrows(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def adjusts(self) -> bool:
        return bool(
            self.bias
            or self.grammar
            or self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


class Sampler:
    """The state of one sequence: its random stream and the tokens that its penalties count."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], choice: int) -> None:
        self.sampling = sampling
        self.counts: Counter[int] = Counter()
        self.guide = sampling.grammar.guide() if sampling.grammar else None
        self._prompt = frozenset(prompt) if sampling.repetition_penalty != 1 else frozenset()
        # Choice 0 of a seeded request is the same whatever n is.
        seed = None if sampling.seed is None else f"{sampling.seed}/{choice}"
        self._random = random.Random(seed)  # noqa: S311  # reproducible, not secret

    def uniform(self) -> float:
        return self._random.random()

    def adjust(self, logits: torch.Tensor) -> None:
        """Apply penalties, bias and grammar to one row of logits (vocabulary size), in place."""
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
        if self.guide:
            self.guide.allow(logits)


def choose(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """One token for each row of `logits` (rows, vocabulary size), float32, which stay as they are."""
    if any(sampler.sampling.adjusts for sampler in samplers):
        logits = logits.clone()
        for row, sampler in enumerate(samplers):
            if sampler.sampling.adjusts:
                sampler.adjust(logits[row])
    tokens = likeliest(logits)
    drawn = [row for row, sampler in enumerate(samplers) if not sampler.sampling.greedy]
    if drawn:
        chosen = _draw(logits[drawn], [samplers[row] for row in drawn])
        for row, token in zip(drawn, chosen, strict=True):
            tokens[row] = token
    for row, sampler in enumerate(samplers):
        if sampler.guide:
            tokens[row] = sampler.guide.take(tokens[row])
        sampler.counts[tokens[row]] += 1
    return tokens


def likeliest(logits: torch.Tensor) -> list[int]:
    """The likeliest token of each row; of equals the first.

    By blocks: torch's argmax goes through 50,257 numbers one by one (0.1 ms a row), its amax eight at a time.
    """
    rows, size = logits.shape
    whole = size // BLOCK
    if not whole:
        return logits.argmax(-1).tolist()
    rest = logits[:, whole * BLOCK :]
    best = logits[:, : whole * BLOCK].view(rows, whole, BLOCK).amax(-1)
    block = best.argmax(-1)
    ids = block[:, None] * BLOCK + torch.arange(BLOCK, device=logits.device)
    place = block * BLOCK + logits.gather(1, ids).argmax(-1)
    if rest.shape[1]:
        last = rest.max(-1)
        place = torch.where(last.values > best.amax(-1), whole * BLOCK + last.indices, place)
    chosen: list[int] = place.tolist()
    return chosen


def _draw(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """One token for each row of `logits` (rows, vocabulary size), which are ours to change."""
    how = [sampler.sampling for sampler in samplers]
    logits.div_(_column([each.temperature for each in how], logits))
    logits.sub_(logits.amax(-1, keepdim=True))
    uniforms = [sampler.uniform() for sampler in samplers]
    tokens = [0] * len(how)
    for narrow in (True, False):
        rows = [row for row, each in enumerate(how) if each.narrows is narrow]
        if not rows:
            continue
        scores = logits if len(rows) == len(how) else logits[rows]
        points = _column([uniforms[row] for row in rows], scores, torch.float64)
        if narrow:
            own = [how[row] for row in rows]
            chosen = _pick_from_best(
                scores, own, points, max(each.top_k + 8 if each.top_k else NUCLEUS for each in own)
            )
        else:
            chosen = _pick_from_all(scores.exp_(), points)
        for row, token in zip(rows, chosen, strict=True):
            tokens[row] = token
    return tokens


def _pick_from_best(
    scores: torch.Tensor, how: Sequence[Sampling], uniforms: torch.Tensor, most: int
) -> list[int]:
    """Draws among what top_k, top_p and min_p leave of each row; `scores` have 0 as their best.

    Looks at the best `most` of each row, and again at all of the rows for which that is not enough.
    """
    size = scores.shape[-1]
    most = min(most, size)
    values, ids = scores.topk(most)
    probabilities = values.exp()
    ks = torch.tensor([[each.top_k if 0 < each.top_k < size else size] for each in how], device=scores.device)
    # Equals of the k-th stay, as in Hugging Face's warper.
    kept = (values >= values.gather(1, ks.clamp(max=most) - 1)) | (ks == size)
    beyond = kept[:, -1] & (ks[:, 0] < size)
    probabilities.masked_fill_(~kept, 0)
    total = torch.where(ks < size, probabilities.sum(-1, keepdim=True), scores.exp().sum(-1, keepdim=True))
    # The smallest set of best tokens whose sum reaches the share; the best always stays.
    shares = _column([each.top_p if each.top_p < 1 else 2 for each in how], scores)
    kept &= probabilities.cumsum(-1) - probabilities < shares * total
    kept &= probabilities >= _column([each.min_p for each in how], scores)
    kept[:, 0] = True
    probabilities.masked_fill_(~kept, 0)
    order = ids.argsort(-1)
    cumulative = probabilities.gather(1, order).cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    chosen: list[int] = ids.gather(1, order.gather(1, place))[:, 0].tolist()
    if most < size:
        again = (beyond | kept[:, -1]).nonzero()[:, 0].tolist()
        if again:
            wider = _pick_from_best(scores[again], [how[row] for row in again], uniforms[again], size)
            for row, token in zip(again, wider, strict=True):
                chosen[row] = token
    return chosen


def _pick_from_all(probabilities: torch.Tensor, uniforms: torch.Tensor) -> list[int]:
    """Draws from the whole vocabulary: first the block of tokens, then the token in it.

    A running sum in float64 over 50,257 tokens takes as long as all the rest of the draw; over the sums of
    197 blocks and one block it is nothing.
    """
    rows, size = probabilities.shape
    blocks = -(-size // BLOCK)
    padded = torch.nn.functional.pad(probabilities, (0, blocks * BLOCK - size)).view(rows, blocks, BLOCK)
    cumulative = padded.sum(-1, dtype=torch.float64).cumsum(-1)
    # A uniform is below 1 by 2**-53 at least: times a sum it stays below that sum, rounded too, so it never
    # points past the last token that is possible.
    points = uniforms * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, points, right=True)
    passed = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0)
    within = padded[torch.arange(rows, device=block.device), block[:, 0]].cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(within, points - passed, right=True)
    # The block's sum and its running sum may be rounded differently: then it is its last possible token.
    last = torch.searchsorted(within, within[:, -1:].contiguous())
    chosen: list[int] = (block * BLOCK + torch.minimum(place, last))[:, 0].tolist()
    return chosen


def _column(values: Sequence[float], like: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]
