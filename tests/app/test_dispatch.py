"""The dispatcher's word to the workers: noted before it is said, so that nothing is lost that they answer."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app import dispatch
from app.database import Database
from app.dispatch import Dispatcher
from app.lifecycle import announcements
from app.lifecycle.offers import Offer
from app.settings import Settings
from app.storage import open_store
from app.watch.traffic import Traffic
from tests.app.test_turns import Queue, queue

__all__ = ["queue"]
NewDispatcher = Callable[[str], Dispatcher]


@pytest.fixture
async def new_dispatcher(database_url: str, tmp_path: Path) -> AsyncIterator[NewDispatcher]:
    """Makes dispatchers of a broker; their loops do not run."""
    made: list[Dispatcher] = []

    def create(redis_url: str) -> Dispatcher:
        settings = Settings(home=tmp_path, database_url=database_url, redis_url=redis_url)
        made.append(Dispatcher(settings, Database(settings), open_store(settings), Traffic()))
        return made[-1]

    yield create
    for dispatcher in made:
        await dispatcher.close()
        await dispatcher.database.close()


async def test_a_knock_that_is_used_up_before_it_is_noted_is_made_again(
    queue: Queue, new_dispatcher: NewDispatcher, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[str | None] = []

    def worker(_: Any, job_id: str) -> None:
        queue.add("urgent", priority=1)
        claimed.append(queue.knock(Offer("w"), job_id))

    queue.work("w", slots=2)
    queue.add("early")
    monkeypatch.setattr(dispatch, "announce", worker)
    await new_dispatcher(redis_url)._announce_due()
    assert claimed == ["urgent"]
    assert queue.due() == ["early"]


async def test_nothing_counts_as_announced_while_the_broker_is_away(
    queue: Queue, new_dispatcher: NewDispatcher, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked: list[str] = []
    mark = announcements.mark_dispatched

    def watched(session: Any, job_id: str) -> bool:
        marked.append(job_id)
        return mark(session, job_id)

    monkeypatch.setattr(announcements, "mark_dispatched", watched)
    queue.add("job")
    dispatcher = new_dispatcher("unix:///nowhere")
    for _ in range(3):
        await dispatcher._announce_due()
        assert queue.due() == ["job"]
    assert (dispatcher.broker_reachable, marked) == (False, ["job"]), "once, to find out"
    await new_dispatcher(redis_url)._announce_due()
    assert queue.due() == []
