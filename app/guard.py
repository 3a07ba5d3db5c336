"""The second line between owners, behind the predicate that every query has: a request's transaction tells
Postgres whose it is, and row-level security (migration 0011) shows and takes no row of anybody else.

Where nobody is named, every row is seen: by workers, loops, the command line, and releases that name nobody.
What a request has to know of others it asks for in `everybody`. The setting is the transaction's own, so it
is gone with it, and a pooler that shares connections by transactions does no harm.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

OWNER = "owner"
NAME_OWNER = text("SELECT set_config('finetuned.owner', :owner, true)")


class GuardedSession(Session):
    """A session whose `info` may say an owner, which each of its transactions begins by naming."""


@event.listens_for(GuardedSession, "after_begin")
def _name_owner(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    owner = session.info.get(OWNER)
    if owner is not None and not transaction.nested:
        connection.execute(NAME_OWNER, {"owner": owner})


@contextmanager
def everybody(session: Session) -> Iterator[None]:
    """Everybody's rows are seen meanwhile. Say why where you call it; tests/security/test_rows.py knows all
    the places."""
    owner = session.info.pop(OWNER, None)
    if owner is None:  # they are anyway
        yield
        return
    session.execute(NAME_OWNER, {"owner": ""})
    try:
        yield
    finally:
        session.info[OWNER] = owner
        # In a transaction that has failed nothing can be said any more, nor seen.
        with suppress(SQLAlchemyError):
            session.execute(NAME_OWNER, {"owner": owner})
