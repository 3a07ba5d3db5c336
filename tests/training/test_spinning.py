"""How long waiting threads of a trainer stay awake: who else is running decides, where nobody has said it."""

import subprocess
import sys
from pathlib import Path

import pytest

from worker.launch import trainer_environment
from worker.training import spinning


def settled(**environment: str) -> dict[str, str]:
    spinning.settle(environment)
    return environment


@pytest.mark.parametrize(
    ("told", "company"), [("0.1 0.2 0.3 1/99 7", False), ("0.1 0.2 0.3 2/99 7", True), ("", True)]
)
def test_company_is_who_runs_beside_this_process(told: str, company: bool, tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text(told)
    assert spinning.has_company(tmp_path / "loadavg") is company
    assert spinning.has_company(tmp_path / "none")


def test_a_busy_neighbour_is_seen() -> None:
    with subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=-1) as busy:
        assert busy.stdout
        busy.stdout.readline()
        try:
            assert any(spinning.has_company() for _ in range(20))
        finally:
            busy.kill()


def test_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(GOMP_SPINCOUNT="7") == {"GOMP_SPINCOUNT": "7"}
    assert settled(OMP_WAIT_POLICY="PASSIVE") == {"OMP_WAIT_POLICY": "PASSIVE"}
    for company, count in ((True, "20000"), (False, "50000")):
        monkeypatch.setattr(spinning, "has_company", lambda company=company: company)
        assert settled() == {"GOMP_SPINCOUNT": count}


def test_a_trainer_of_the_service_sleeps_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert trainer_environment()["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "9")
    assert trainer_environment()["GOMP_SPINCOUNT"] == "9"
