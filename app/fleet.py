"""Several generators as one: a model goes to the same one as long as that can take it, so that it is loaded
in as few of them as will do.

Which one that is follows from hashing each generator's address with the model's source and taking the
largest (rendezvous hashing): a generator more or less moves only its own share of the models.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from app.errors import TooMany, Unavailable
from app.generator import Generation, Generator, Piece, Usage, away

Lines = AsyncGenerator[Piece | Usage | None]
Measure = Callable[[Generation, Lines], Lines]

# Seconds for which a generator that was not there is asked after all others.
PAUSE = 5.0


class Fleet:
    """The generators of GENERATOR_URL; none at all is like one that is always away.

    `measure` passes each generation's lines on, and may count them.
    """

    def __init__(self, urls: Sequence[str], measure: Measure = lambda _, lines: lines) -> None:
        self._members = [Generator(url) for url in urls]
        self._measure = measure
        self._paused: dict[str, float] = {}  # until when, on the monotonic clock

    async def close(self) -> None:
        for member in self._members:
            await member.close()

    async def answers(self) -> bool:
        """Whether any generator does within two seconds; true where none is wanted."""
        found = await asyncio.gather(*(member.answers() for member in self._members))
        return any(found) or not found

    def lines(self, generation: Generation) -> Lines:
        """What the first generator says that is there and not full; see Generator.lines.

        Raises ServiceError: TooMany where one was full, Unavailable where none was there.
        """
        return self._measure(generation, self._lines(generation))

    async def _lines(self, generation: Generation) -> Lines:
        refusal: TooMany | Unavailable = away()
        for member in self._order(generation.source):
            begun = False
            try:
                async with aclosing(member.lines(generation)) as lines:
                    async for line in lines:
                        begun = begun or line is not None
                        yield line
                return
            except (TooMany, Unavailable) as error:
                # Once a piece was sent, nobody else can go on with it.
                if begun:
                    raise
                refusal = self._note(member, error, refusal)
        raise refusal

    def _note(
        self, member: Generator, error: TooMany | Unavailable, before: TooMany | Unavailable
    ) -> TooMany | Unavailable:
        """Remember who is not there; of two refusals, that of somebody who was there counts."""
        if error.code == away().code:
            self._paused[member.url] = time.monotonic() + PAUSE
            return before
        return error

    def _order(self, source: str) -> list[Generator]:
        def rank(member: Generator) -> tuple[bool, bytes]:
            paused = self._paused.get(member.url, 0.0) > time.monotonic()
            return not paused, hashlib.sha256(f"{member.url} {source}".encode()).digest()

        return sorted(self._members, key=rank, reverse=True)
