"""The programs' logs on disk."""

from pathlib import Path

from app.embedded import logs


def test_a_new_run_keeps_the_logs_of_the_one_before(tmp_path: Path) -> None:
    for run in ("first", "second", "third"):
        logs.rotate(tmp_path)
        (tmp_path / "worker.log").write_text(run)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "worker.log": "third",
        "worker.log.1": "second",
    }


def test_a_log_that_grows_too_large_starts_anew_while_its_program_goes_on_writing(tmp_path: Path) -> None:
    small, large = tmp_path / "small.log", tmp_path / "large.log"
    small.write_text("x")
    with large.open("a") as program:
        print("x" * 100, file=program, flush=True)
        logs.trim(tmp_path, largest=50)
        print("afterwards", file=program, flush=True)
    assert large.read_text() == "afterwards\n"
    assert (tmp_path / "large.log.1").stat().st_size == 101
    assert small.read_text() == "x"
