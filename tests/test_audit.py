"""The audit says `clean` only of what was looked at, wholly; what is pinned is what the project asks for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.audit import pins
from tests.audit.verdict import CLEAN, INCOMPLETE, NOT_AUDITED, VULNERABLE, Verdict, judge, worst

# What pip-audit 2.10 prints, cut down to two packages.
SOUND: list[dict[str, Any]] = [
    {"name": "jinja2", "version": "3.1.6", "vulns": []},
    {"name": "typing_extensions", "version": "4.16.0", "vulns": []},
]
FLAW = {"id": "GHSA-462w-v97r-4m45", "fix_versions": ["2.10.1"], "aliases": [], "description": ""}
SKIPPED = {"name": "typing-extensions", "skip_reason": "not found on PyPI"}
PINNED = {"jinja2": "3.1.6", "typing-extensions": "4.16.0"}
OFFLINE = """\
ERROR:pip_audit._cli:Failed to connect to the vulnerability service: HTTPSConnectionPool(host='pypi.org',
ERROR:pip_audit._cli:ConnectionError: Could not connect to PyPI's vulnerability feed
"""


def report(*dependencies: dict[str, Any]) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


@pytest.mark.parametrize(
    ("said", "complaint", "status", "word"),
    [
        (report(*SOUND), "", CLEAN, "2 packages"),
        (report({**SOUND[0], "vulns": [FLAW]}, SOUND[1]), "", VULNERABLE, "fixed in 2.10.1"),
        (report(SOUND[0], SKIPPED), "", INCOMPLETE, "skipped"),
        (report({**SKIPPED, "name": "jinja2"}, SKIPPED), "", NOT_AUDITED, "knows none"),
        (report(SOUND[0]), "", INCOMPLETE, "not in the report"),
        (report(SOUND[0], {**SOUND[1], "version": "4.15.0"}), "", INCOMPLETE, "looked at as 4.15.0"),
        (report(), "", INCOMPLETE, "not in the report"),
        ("", OFFLINE, NOT_AUDITED, "Could not connect"),
        ("", "", NOT_AUDITED, "no report"),
        ("{}", "", NOT_AUDITED, "no report"),
        ("[]", "Traceback", NOT_AUDITED, "Traceback"),
    ],
)  # fmt: skip
def test_only_a_look_at_every_package_is_clean(said: str, complaint: str, status: str, word: str) -> None:
    verdict = judge(PINNED, said, complaint)
    assert verdict.status == status
    assert any(word in line for line in verdict.lines), verdict.lines
    assert verdict.code == {CLEAN: 0, VULNERABLE: 1, INCOMPLETE: 2, NOT_AUDITED: 3}[status]


def test_of_several_sets_the_worst_is_told() -> None:
    several = [Verdict(CLEAN), Verdict(NOT_AUDITED), Verdict(INCOMPLETE), Verdict(VULNERABLE)]
    assert [worst(several[: n + 1]).status for n in range(4)] == [CLEAN, NOT_AUDITED, INCOMPLETE, VULNERABLE]


def test_nothing_at_all_is_not_clean() -> None:
    assert judge({}, report()).status == INCOMPLETE


@pytest.mark.parametrize("name", pins.sets())
def test_what_is_pinned_is_what_the_project_asks_for(name: str) -> None:
    assert pins.stale(name) == []


def test_a_pin_that_is_out_of_date_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    held = pins.pins("api")
    monkeypatch.setattr(pins, "pins", lambda _: {**held, "fastapi": "0.1.0"})
    assert any("asks for fastapi" in line for line in pins.stale("api"))
    less = {package: version for package, version in held.items() if package != "jinja2"}
    monkeypatch.setattr(pins, "pins", lambda _: less)
    assert any("jinja2, which is not pinned" in line for line in pins.stale("api"))


def test_without_the_tool_nothing_is_called_clean(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.audit", "--tool", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=pins.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, "not audited")


def test_a_seeded_vulnerable_pin_is_found(tmp_path: Path) -> None:
    """With the real service, where one answers; there is none without the internet."""
    tool = pins.ROOT / "build" / "audit" / "bin" / "pip-audit"
    if not tool.is_file():
        pytest.skip("pip-audit is not installed here: make audit")
    (tmp_path / "seeded.txt").write_text("jinja2==2.10\n")
    command = [str(tool), "-r", str(tmp_path / "seeded.txt"), "--no-deps", "--disable-pip", "-f", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    verdict = judge({"jinja2": "2.10"}, done.stdout, done.stderr)
    # Where no advisory service answers, what is vulnerable must not be called clean either.
    assert verdict.status in (VULNERABLE, NOT_AUDITED)


# What pip-audit does with a list of requirements, without a service: `SAYS` is how many packages it leaves
# out, or what it cannot do.
TOOL = """\
#!{python}
import json, os, sys
path = sys.argv[sys.argv.index("--requirement") + 1]
pins = [line.split("==") for line in open(path).read().splitlines() if "==" in line]
if os.environ["SAYS"] == "offline":
    sys.exit("ERROR:pip_audit._cli:ConnectionError: Could not connect")
if os.environ["SAYS"] == "pypi is away" and "pypi" in sys.argv:
    sys.exit("ERROR:pip_audit._cli:ConnectionError: Could not connect")
found = [{{"name": name, "version": version, "vulns": []}} for name, version in pins]
if os.environ["SAYS"] == "one skipped" and "benchmark" in path:
    found[3] = {{"name": found[3]["name"], "skip_reason": "not found on PyPI"}}
print(json.dumps({{"dependencies": found, "fixes": []}}))
"""


@pytest.mark.parametrize(
    ("says", "code", "last"),
    [
        ("all", 0, "clean"),
        ("one skipped", 2, "incomplete"),
        ("offline", 3, "not audited"),
        ("pypi is away", 0, "clean"),
    ],
)
def test_the_last_line_and_the_status_tell_it(
    says: str, code: int, last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, with a stand-in of pip-audit: here no service answers."""
    tool = tmp_path / "pip-audit"
    tool.write_text(TOOL.format(python=sys.executable))
    tool.chmod(0o700)
    monkeypatch.setenv("SAYS", says)
    command = [sys.executable, "-m", "tests.audit", "--tool", str(tool)]
    done = subprocess.run(command, cwd=pins.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (code, last), done.stdout
    assert ("clean" in done.stdout) is (last == "clean")


def test_the_tools_that_audit_are_pinned_like_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pins.TOOLS in pins.sets(), "and audited themselves"
    monkeypatch.setattr(pins, "pins", lambda _: {"pip-audit": "2.10.1"})
    assert pins.stale(pins.TOOLS) == ["audit: Makefile asks for cyclonedx-bom, which is not pinned"]


def test_the_lock_makes_every_set_that_is_there() -> None:
    """As `make` would run it, without running it: compiling takes minutes and the index."""
    planned = subprocess.run(
        ["make", "--dry-run", "lock"], cwd=pins.ROOT, capture_output=True, text=True, check=True
    ).stdout
    made = {Path(word).stem for word in planned.split() if word.startswith("requirements/")}
    there = {path.stem for path in (pins.ROOT / "requirements").glob("*.txt")}
    assert made - {""} == there == set(pins.sets())
