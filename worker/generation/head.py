"""The output embedding on a CPU, and what it says comes next."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from worker.generation.sampling import likeliest
from worker.generation.screen import Screen

# Weights from which on the screen is quicker than the product: below, its own twenty operations cost more.
WORTH = 4_000_000
# Steps without the screen after one where it could not tell.
RESTS = 50


class Head(nn.Module):
    """The output embedding, where half of a decode step is this product and its layout decides.

    Packed once by oneDNN, as torch's own compiler does it for weights that stay: of 256 by 50,257 on 2 cores
    with AVX-512, 1, 16 and 64 rows take 2.6, 4.3 and 9.7 ms. As stored they take 2.8, 13 and 12; with a
    contiguous transpose 2.0, 5.5 and 11.3, most of it to lay out the weight anew for each product.
    """

    ROWS = 16  # for which the layout is chosen; one for 1 or 64 is no faster there, and slower elsewhere

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight  # (vocabulary size, width), usually the input embedding itself
        self.bias = linear.bias
        # Neither a parameter nor a buffer: its memory cannot be looked at, its size is that of the weight.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), self.ROWS)
        self._screen = Screen(self.weight.detach()) if self._is_worth_it() else None
        self._resting = 0

    @property
    def size(self) -> int:
        """Bytes that it takes beside the weight."""
        return self.weight.nbytes + (self._screen.size if self._screen else 0)

    def _is_worth_it(self) -> bool:
        known = torch.backends.cpu.get_cpu_capability().startswith("AVX")  # what the screen was tried on
        plain = self.weight.dtype == torch.float32 and self.bias is None
        return known and plain and self.weight.numel() >= WORTH

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, width) to (…, vocabulary size)."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        logits: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._packed, self.bias, "none", [], ""
        )
        return logits.view(*hidden.shape[:-1], -1)

    def likeliest(self, hidden: torch.Tensor) -> list[int]:
        """The first of the likeliest tokens of each row of (rows, width)."""
        if self._screen and not self._resting:
            found = self._screen.best(hidden)
            if found is not None:
                return found
            self._resting = RESTS
        self._resting = max(0, self._resting - 1)
        return likeliest(self(hidden))


class Outlook:
    """What may come next in some rows; the logits are made only for who wants more than the likeliest."""

    def __init__(self, values: torch.Tensor, head: Any = None, known: Sequence[int] | None = None) -> None:
        """`values` are logits (rows, vocabulary size), or with a `head` the states (rows, width) before;
        `known` the likeliest tokens, where they were found."""
        self._values, self._head, self._known = values, head, known

    @classmethod
    def joined(cls, parts: Sequence["Outlook"]) -> "Outlook":
        """Of one model, one behind the other."""
        known: list[int] | None = []
        for part in parts:
            known = None if known is None or part._known is None else [*known, *part._known]
        if len({id(part._head) for part in parts}) > 1:  # prompts that were read in different ways
            return cls(torch.cat([part.logits for part in parts]), None, known)
        return cls(torch.cat([part._values for part in parts]), parts[0]._head, known)

    def __len__(self) -> int:
        return len(self._values)

    def of(self, rows: Sequence[int]) -> "Outlook":
        if len(rows) == len(self):
            return self
        known = None if self._known is None else [self._known[row] for row in rows]
        return Outlook(self._values[list(rows)], self._head, known)

    @cached_property
    def logits(self) -> torch.Tensor:
        """(rows, vocabulary size), float32."""
        if self._head is None:
            return self._values
        logits: torch.Tensor = self._head(self._values)
        return logits.float()

    @property
    def likeliest(self) -> Sequence[int]:
        """One token a row. Found once; parts that are taken afterwards know theirs."""
        if self._known is None:
            screened = isinstance(self._head, Head)
            self._known = self._head.likeliest(self._values) if screened else likeliest(self.logits)
        return self._known
