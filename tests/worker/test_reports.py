"""What trainers say, however wrong, never stops the heartbeat nor hides what they said before and after."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.tables import Event, Metric
from tests.worker.conftest import Bench
from worker import hearing, record, rows
from worker.training import events

STEP = {
    "event": "step",
    "step": 4,
    "epoch": 0.5,
    "loss": 1.0,
    "learning_rate": 0.1,
    "grad_norm": 1.0,
    "tokens": 1,
    "trained_tokens": 4,
    "tokens_per_second": 1.0,
    "memory_bytes": 1,
    "skipped": False,
}
NOTICE = {"event": "notice", "level": "info", "code": "c", "message": "m"}
STRANGE: list[Any] = [
    [],
    1,
    {"event": "step"},
    {"event": []},
    {"event": {}},
    {"event": "secret"},
    NOTICE | {"level": "loud"},
    NOTICE | {"data": []},
    NOTICE | {"message": None},
    STEP | {"step": "four"},
    STEP | {"step": 2**63},
    STEP | {"tokens": None},
    STEP | {"more": 1},
]


@pytest.mark.parametrize(
    "line", ["", "no json", "\x00", "[" * 100_000, '{"a":' * 50_000, *map(json.dumps, STRANGE)]
)
def test_what_is_no_event_of_ours_is_refused_as_one(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # of any kind
        hearing.hear(line.encode())


def test_what_no_column_takes_is_replaced() -> None:
    said = NOTICE | {"message": "a\x00b", "data": {"k\x00": ["\x00", {"deep": "\ud800"}], "n": float("nan")}}
    event = hearing.hear(json.dumps(said).encode())
    assert event == events.Notice("info", "c", "a�b", {"k�": ["�", {"deep": "�"}], "n": None})
    assert hearing.text(b"x\x00y\xff\r\n", 100) == "x�y�"


def test_events_survive_the_way_unchanged() -> None:
    for event in (
        events.Step(4, 0.5, None, 0.1, None, 1, 4, 1.0, 1, True),
        events.Saved(5, "/a/b", "00", 1, {"train_loss": 0.5}, True, False),
        events.Failed("out_of_memory", "Größe", "max_length", 3),
        events.Sampled(5, [{"prompt": "p", "text": "t", "ended": True}], 1.0),
    ):
        assert hearing.hear(events.line(event).encode()) == event


def test_garbage_on_stdout_and_endless_lines_change_nothing(bench: Bench) -> None:
    job_id = bench.make_job(
        {"do": "say", "line": "Loading weights: 100%", "times": 50, "at": 1},
        {"do": "say", "line": "[" * 20_000, "at": 2},
        {"do": "say", "line": '{"event": ["step"]}', "at": 3},
        {"do": "say", "line": "x" * 6_000_000, "at": 4},
        {"do": "log", "line": "=" * 3_000_000, "at": 5},
        {"do": "say", "line": json.dumps(NOTICE | {"message": "nul \x00", "data": {"a": "\x00"}}), "at": 6},
    )
    job = bench.train(job_id)
    assert job.status == "succeeded"
    assert [metric.step for metric in bench.rows(Metric, job_id)] == list(range(1, 11))
    assert "nul �" in [event.message for event in bench.rows(Event, job_id)]


def test_log_lines_no_column_takes_still_end_up_in_the_error(bench: Bench) -> None:
    job_id = bench.make_job(
        {"do": "log", "line": "bad \x00 byte"}, {"do": "exit", "code": 1, "at": 2}, max_attempts=1
    )
    job = bench.train(job_id)
    assert (job.status, job.error_code) == ("failed", "worker_crashed")
    assert "bad � byte" in (job.error_message or "")


def test_an_event_that_the_database_refuses_is_left_out_and_told_of(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever `hearing` may overlook: here it lets everything pass."""
    monkeypatch.setattr(hearing, "_storable", lambda value, _: value)
    poison = json.dumps(NOTICE | {"code": "poison", "data": {"a": "\x00"}})
    job_id = bench.make_job({"do": "say", "line": poison, "at": 5}, steps=40, pause=0.03)
    job = bench.train(job_id)
    codes = bench.codes(job_id)
    assert job.status == "succeeded"
    assert "poison" not in codes
    assert codes.count("event_refused") == 1
    assert [metric.step for metric in bench.rows(Metric, job_id)] == list(range(1, 41))


def test_a_fault_in_writing_never_ends_the_heartbeats(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failed = rows.Rows.write, 0

    def write(self: rows.Rows, *given: Any) -> Any:
        nonlocal failed
        if failed < 3:
            failed += 1
            raise RuntimeError("a bug")
        return real(self, *given)

    monkeypatch.setattr(rows.Rows, "write", write)
    job_id = bench.make_job(steps=60, pause=0.03)
    job = bench.train(job_id)
    assert failed == 3
    assert job.status == "succeeded"


def test_a_long_silence_is_reported_in_pieces_and_in_order(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "BATCH", 7)
    monkeypatch.setattr(record, "WRITE_EVERY", 60.0)
    job_id = bench.make_job(steps=100, pause=0)
    job = bench.train(job_id)
    assert job.status == "succeeded"
    assert [metric.step for metric in bench.rows(Metric, job_id)] == list(range(1, 101))
    saved = [event.data["step"] for event in bench.rows(Event, job_id) if event.code == "checkpoint"]
    assert saved == list(range(5, 101, 5))


def test_an_answer_lost_after_the_commit_doubles_no_line_of_the_history(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres commits, and dies before it says so: what was reported is written once more, under its ids."""
    database = bench.runtime.database
    real, lost = database.transaction, 0

    @contextmanager
    def transaction() -> Iterator[Session]:
        nonlocal lost
        with real() as session:
            yield session
        if lost < 2 and threading.current_thread().name.startswith("record-"):
            lost += 1
            raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

    job_id = bench.make_job(steps=20, pause=0.05)
    monkeypatch.setattr(database, "transaction", transaction)
    assert bench.train(job_id).status == "succeeded"
    assert lost > 0
    messages = [event.message for event in bench.rows(Event, job_id)]
    assert len(messages) == len(set(messages)), messages
