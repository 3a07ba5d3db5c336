"""`python -m tests.audit [--pins | --tool PATH]`: are the pinned packages up to date, and known to be sound?

--pins  only compares requirements/ with pyproject.toml; it needs no network.
--tool  pip-audit, in an environment of its own: `make audit`.

The last line is the verdict; the exit status tells it too: 0 clean, 1 vulnerable, 2 incomplete (a package was
skipped), 3 not audited (no advisory service answered, so nothing is known).
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.audit import pins
from tests.audit.verdict import NOT_AUDITED, Verdict, judge, worst

SERVICES = ("pypi", "osv")
SECONDS = 600


def audit(tool: Path, name: str) -> Verdict:
    """A set of packages, by the first service that answers."""
    verdict = Verdict(NOT_AUDITED)
    for service in SERVICES:
        command = [str(tool), "--requirement", f"requirements/{name}.txt", "--no-deps", "--disable-pip"]
        command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
        command += ["--vulnerability-service", service]
        try:
            done = subprocess.run(
                command, cwd=pins.ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return Verdict(NOT_AUDITED, (f"{type(error).__name__}: {error}",))
        verdict = judge(pins.pins(name), done.stdout, done.stderr)
        if verdict.status != NOT_AUDITED:
            break
    return verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.audit")
    parser.add_argument("--pins", action="store_true", help="compare requirements/ with pyproject.toml only")
    parser.add_argument("--tool", type=Path, default=Path("build/audit/bin/pip-audit"), help="pip-audit")
    asked = parser.parse_args()
    if stale := [line for name in pins.sets() for line in pins.stale(name)]:
        print(*stale, "requirements/ is out of date: make lock", sep="\n")
        return 1
    if asked.pins:
        return 0
    verdicts = []
    for name in pins.sets():
        verdicts.append(verdict := audit(asked.tool, name))
        print(*(f"{name}: {line}" for line in verdict.lines), sep="\n")
        if verdict.status == NOT_AUDITED:
            break  # nobody answers the next one either
    found = worst(verdicts)
    print(found.status)
    return found.code


if __name__ == "__main__":
    sys.exit(main())
