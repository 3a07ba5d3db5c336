"""Columns of a job that say which worker it waits for and whom it gives way to, and of a worker that say
what it offers. Read and written by `lifecycle.offers`, `lifecycle.turns` and `lifecycle.yielding`."""

from datetime import datetime

from sqlalchemy import BigInteger, String, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column


class Waiting:
    """Of `tables.Job`."""

    labels: Mapped[list[str]] = mapped_column(ARRAY(String), server_default=text("'{}'"))
    # What the user says that it needs, and what it is reckoned to take while it runs; bytes, null: not known.
    least_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    # When its history was told that no living worker fits it.
    unserved_at: Mapped[datetime | None]
    # When another was last asked to give way to it.
    made_room_at: Mapped[datetime | None]
    # Of a running job: the one it is asked to give way to. Means nothing in any other state.
    yield_to: Mapped[str | None]


class Offering:
    """Of `tables.Worker`."""

    labels: Mapped[list[str]] = mapped_column(ARRAY(String), server_default=text("'{}'"))
    # What its device has, and what its jobs may take together; null: their number alone is limited.
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    budget_bytes: Mapped[int | None] = mapped_column(BigInteger)
