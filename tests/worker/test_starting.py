"""Trainers that are started for nobody, or cannot be started: nothing of them is left."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.lifecycle import wishes
from app.recipe import Recipe
from app.settings import Settings
from app.storage import open_store
from app.tables import Job
from tests.worker.conftest import STAND_IN, Bench
from tests.worker.test_supervision import LONG, alive, wait_for, wish
from worker import cells, spread
from worker.cells import Cell
from worker.launch import Trainer, WarmTrainers


def test_a_cancel_while_the_processes_of_a_job_are_started_leaves_none_that_trains(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a job on several devices: they have it from their first moment, so nobody need give it to them."""
    started, go = threading.Event(), threading.Event()
    made: list[Trainer] = []

    def starter(devices: int, line: dict[str, Any], cell: Cell | None) -> Callable[[], Trainer]:
        def start() -> Trainer:
            started.set()
            assert go.wait(30)
            trainer = Trainer(STAND_IN, cell)
            trainer.begin(line)
            made.append(trainer)
            return trainer

        return start

    monkeypatch.setattr(spread, "starter", starter)
    job_id = bench.make_job(**LONG)
    with bench.runtime.database.transaction() as session:
        recipe = Recipe(num_devices=2).model_dump(mode="json")
        session.execute(update(Job).where(Job.id == job_id).values(recipe=recipe))
    thread = bench.begin(job_id)
    assert started.wait(30)
    wish(bench, wishes.cancel, job_id)
    thread.join(10)
    assert bench.job(job_id).status == "cancelled"
    go.set()
    wait_for(lambda: bool(made), "the start")
    wait_for(lambda: not alive(made[0].pid), "its end")


def test_who_is_given_up_is_ended_when_it_is_there_and_not_started_when_it_is_not() -> None:
    go = threading.Event()
    made: list[Trainer] = []

    def start() -> Trainer:
        made.append(Trainer(STAND_IN))
        return made[-1]

    def start_late() -> Trainer:
        assert go.wait(30)
        return start()

    trainers = WarmTrainers(start)
    there = trainers.start(start)
    wait_for(lambda: bool(made), "the first")
    there.give_up()
    wait_for(lambda: not alive(made[0].pid), "its end")
    taken, never = trainers.start(start_late), trainers.start(start)
    never.give_up()
    go.set()
    assert taken.take(30) is made[1]
    last = trainers.start(start)
    assert last.take(30) is made[2], "in their order: the one between is behind us"
    for trainer in made[1:]:
        trainer.signal(9)
        trainer.end()


def test_what_was_made_for_a_trainer_that_cannot_be_started_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path)
    cell = cells.of(settings, open_store(settings))
    assert cell is not None
    with pytest.raises(OSError, match="Argument list too long"):
        Trainer(("x" * 200_000,), cell)
    assert list(cell.temporary.iterdir()) == []

    # Really to use up the machine's threads would hurt others.
    def start(self: threading.Thread) -> None:
        started.append(self.name)
        raise RuntimeError("can't start new thread")

    started: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError):
            Trainer(STAND_IN, cell)
    assert list(cell.temporary.iterdir()) == []
    assert not alive(int(started[0].split("-")[1]))
