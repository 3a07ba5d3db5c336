"""The result file: written with the success, once, and never at the model's expense."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError

from app.folder import Folder
from app.storage import Upload
from app.tables import Attempt, File, Metric
from tests.worker.conftest import Bench
from worker import publish


def files(bench: Bench) -> list[File]:
    with bench.session as session:
        return list(session.scalars(select(File).where(File.purpose == "fine-tune-results")))


def test_a_job_that_succeeds_leaves_its_metrics_as_csv(bench: Bench) -> None:
    job = bench.train(bench.make_job(steps=12))
    (file,) = files(bench)
    assert (job.result_file, file.owner, file.status, file.rows) == (file.id, job.owner, "processed", 12)
    path = bench.runtime.store.scratch(file.key or "")
    assert path.stat().st_size == file.bytes
    with path.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    metrics = bench.rows(Metric, job.id)
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [float(row["train_loss"]) for row in rows] == [metric.loss for metric in metrics]
    assert {row["valid_mean_token_accuracy"] for row in rows} == {""}


def test_a_commit_that_is_tried_again_leaves_one_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database goes away after the file is written and before the job has succeeded."""
    real: Callable[..., bool] = publish.announce
    tries = 0

    def announce(session: Any, *given: Any) -> bool:
        nonlocal tries
        tries += 1
        done = real(session, *given)
        if tries == 1:
            raise OperationalError("the connection broke", None, OSError())
        return done

    monkeypatch.setattr(publish, "announce", announce)
    job = bench.train(bench.make_job())
    (file,) = files(bench)
    assert (tries, job.status, job.result_file) == (2, "succeeded", file.id)
    assert [path.name for path in bench.runtime.store.scratch("files").glob("*results*")] == [
        Path(file.key or "").name
    ]


def test_a_full_disk_costs_the_file_but_not_the_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    job_id = bench.make_job()
    monkeypatch.setattr(Upload, "commit", full)
    job = bench.train(job_id)
    assert (job.status, job.result_file, files(bench)) == ("succeeded", None, [])
    assert "results_not_written" in bench.codes(job_id)


def test_a_job_without_a_model_has_no_result_file(bench: Bench) -> None:
    job = bench.train(bench.make_job({"do": "exit", "code": 79, "at": 7}))
    assert (job.status, job.result_file, files(bench)) == ("failed", None, [])


def test_an_attempt_keeps_what_it_trained_on_and_how_fast(bench: Bench) -> None:
    job = bench.train(bench.make_job(steps=20))
    (attempt,) = bench.rows(Attempt, job.id)
    assert (job.parameters, job.epoch_tokens, attempt.device) == (1, 120, "cpu")
    assert 0 < (attempt.tokens_per_second or 0) < 10 / 0.01, "ten tokens a step, each of which takes 10 ms"


def test_a_million_steps_pass_through_in_constant_memory(bench: Bench) -> None:
    """Here a hundred thousand: what counts is that no piece is larger than a row or a few."""
    job_id = bench.make_job(steps=1)
    with bench.runtime.database.transaction() as session:
        session.execute(
            text(
                "INSERT INTO metrics (job_id, step, epoch, loss)"
                " SELECT :job, n, 1, random() FROM generate_series(10, 100009) n"
            ),
            {"job": job_id},
        )
    largest = 0
    real = Upload.write

    def write(self: Upload, data: bytes) -> None:
        nonlocal largest
        largest = max(largest, len(data))
        real(self, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Upload, "write", write)
        job = bench.train(job_id)
    (file,) = files(bench)
    assert (job.status, file.rows) == ("succeeded", 100_001)
    assert 0 < largest < 1_000_000
    assert isinstance(bench.runtime.store, Folder)
