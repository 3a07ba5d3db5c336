"""The second line between owners, behind the predicate that every query has: a request's transaction tells
Postgres whose it is, and row-level security (migration 0011) shows and takes no row of anybody else.

Where nobody is named, every row is seen: by workers, loops, the command line, and releases that name nobody.
What a request has to know of others it asks for in `everybody`. The setting is the transaction's own, so it
is gone with it, and a pooler that shares connections by transactions does no harm.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

OWNER = "owner"
NAME_OWNER = "SELECT set_config('finetuned.owner', %s, true)"


class GuardedSession(Session):
    """A session whose `info` may say an owner, which each of its transactions begins by naming."""


@event.listens_for(GuardedSession, "after_begin")
def _begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    owner = session.info.get(OWNER)
    if owner is not None and not transaction.nested:
        _name(connection, owner)


def _name(connection: Connection, owner: str) -> None:
    # A statement of SQLAlchemy's takes a third longer, and every request waits for this one.
    connection.exec_driver_sql(NAME_OWNER, (owner,))


@contextmanager
def everybody(session: Session) -> Iterator[None]:
    """Everybody's rows are seen meanwhile. Say why where you call it; tests/security/test_rows.py knows all
    the places."""
    owner = session.info.pop(OWNER, None)
    if owner is None:  # they are anyway
        yield
        return
    _name(session.connection(), "")
    try:
        yield
    finally:
        session.info[OWNER] = owner
        # In a transaction that has failed nothing can be said any more, nor seen.
        with suppress(SQLAlchemyError):
            _name(session.connection(), owner)
