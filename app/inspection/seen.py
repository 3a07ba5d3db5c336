"""Which rows were there before, in bounded memory: 64-bit hashes in an open table, 12 to 24 bytes a row.

Two different rows of ten million share a hash with a chance of 3 in a million.
"""

import hashlib
from array import array

LEAST = 1 << 12
MOST = 1 << 26  # places: 512 MB, 44 million rows; beyond, every second row is forgotten, then every fourth


class Hashes:
    """A set of hashes. `every`: of so many one is kept, the same in all files; counts times it estimate."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._table, self._count = most, array("Q", bytes(8 * LEAST)), 0
        self.every = 1

    def add(self, key: int) -> bool:
        """Whether it was there already; one that is not kept never is."""
        if key % self.every:
            return False
        table = self._table
        at = self._place(table, key)
        if table[at]:
            return True
        table[at] = key
        self._count += 1
        if self._count * 3 > len(table) * 2:
            self._grow()
        return False

    def __contains__(self, key: int) -> bool:
        return key % self.every == 0 and self._table[self._place(self._table, key)] == key

    @staticmethod
    def _place(table: "array[int]", key: int) -> int:
        """Where the key is, or would be. The low bits choose what is kept, so higher ones the place."""
        mask = len(table) - 1
        at = (key >> 16) & mask
        while table[at] and table[at] != key:
            at = (at + 1) & mask
        return at

    def _grow(self) -> None:
        old, size = self._table, len(self._table) * 2
        if size > self._most:
            self.every, size = self.every * 2, len(old)
        table, self._count = array("Q", bytes(8 * size)), 0
        for key in old:
            if key and key % self.every == 0:
                table[self._place(table, key)] = key
                self._count += 1
        self._table = table


class Digest:
    """The hash of a row's words; of a long one they may come in pieces that do not cut through a word."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)

    def add(self, text: str) -> None:
        """White space counts only as such."""
        self._hash.update(" ".join([*text.split(), ""]).encode())

    def end_part(self) -> None:
        """What follows is another part of the row: "a b" and "c" are not "a" and "b c"."""
        self._hash.update(b"\0")

    def value(self) -> int:
        """64 bits; never 0, which marks a free place."""
        return int.from_bytes(self._hash.digest(), "little") or 1
