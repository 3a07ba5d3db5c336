"""What an audit of dependencies found, as one of four verdicts. Only a look at all of them may be `clean`."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CLEAN, VULNERABLE, INCOMPLETE, NOT_AUDITED = "clean", "vulnerable", "incomplete", "not audited"
EXIT = {CLEAN: 0, VULNERABLE: 1, INCOMPLETE: 2, NOT_AUDITED: 3}


@dataclass(frozen=True)
class Verdict:
    """`lines` say which packages, and why."""

    status: str
    lines: tuple[str, ...] = ()

    @property
    def code(self) -> int:
        return EXIT[self.status]


def judge(pinned: Mapping[str, str], said: str, complaint: str = "") -> Verdict:
    """`said` is pip-audit's JSON, `complaint` what it wrote beside it, `pinned` what it was asked about."""
    try:
        report = json.loads(said)
        found: dict[str, Any] = {_plain(one["name"]): one for one in report["dependencies"]}
    except (ValueError, KeyError, TypeError):
        last = complaint.strip().splitlines()[-1:] or ["pip-audit gave no report"]
        return Verdict(NOT_AUDITED, (last[0][:300],))
    if found and all("skip_reason" in one for one in found.values()):
        # A mirror of the index answers so: it has the packages, and no advisories.
        return Verdict(NOT_AUDITED, (f"the service knows none of {len(found)} packages",))
    wrong = [
        f"{name} {one.get('version')}: {flaw['id']}{_fixed(flaw)}"
        for name, one in found.items()
        for flaw in one.get("vulns", ())
    ]
    unseen = [f"{name} {pinned[name]}: {_unseen(found.get(name), pinned[name])}" for name in pinned]
    unseen = [line for line in unseen if not line.endswith(": ")]
    if wrong:
        return Verdict(VULNERABLE, (*wrong, *unseen))
    if unseen or not pinned:
        return Verdict(INCOMPLETE, tuple(unseen) or ("nothing was asked about",))
    return Verdict(CLEAN, (f"{len(pinned)} packages",))


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Of several: what is vulnerable before what was not seen, and clean only where all are."""
    order = (VULNERABLE, INCOMPLETE, NOT_AUDITED, CLEAN)
    return min(verdicts, key=lambda verdict: order.index(verdict.status))


def _unseen(one: Any, version: str) -> str:
    if one is None:
        return "is not in the report"
    if "skip_reason" in one:
        return f"was skipped ({one['skip_reason']})"
    return "" if one.get("version") == version else f"was looked at as {one.get('version')}"


def _fixed(flaw: Any) -> str:
    versions = flaw.get("fix_versions") or ()
    return f", fixed in {', '.join(versions)}" if versions else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
