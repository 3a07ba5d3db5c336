"""What requirements/ pins, held against what pyproject.toml asks for and what the pinned packages ask for."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
Pins = dict[str, str]
TOOLS = "audit"  # the set of what audits, in an environment of its own


def sets() -> list[str]:
    """Those that `make lock` makes."""
    return [*_words("SETS"), TOOLS]


def _words(variable: str) -> list[str]:
    """Of a variable of the Makefile."""
    found = re.search(rf"^{variable} := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1].split() if found else []


def pins(name: str) -> Pins:
    """Version by package of a set."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): version for package, version in found}


def extras(name: str, makefile: str) -> set[str]:
    """Which extras a set holds, as the Makefile says."""
    line = re.search(rf"^{name}_EXTRAS := ?(.*)$", makefile, re.MULTILINE)
    words = line[1] if line else ""
    for inner in re.findall(r"\$\((\w+)_EXTRAS\)", words):
        words += " " + " ".join(f"--extra {extra}" for extra in extras(inner, makefile))
    return set(re.findall(r"--extra (\S+)", words))


def stale(name: str) -> list[str]:
    """Why the set is out of date: what is asked for and not pinned, or pinned outside what is asked for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    held = pins(name)
    asked = _words("AUDIT_TOOLS") if name == TOOLS else list(project["dependencies"])
    for extra in extras(name, (ROOT / "Makefile").read_text(encoding="utf-8")):
        asked += project["optional-dependencies"][extra]
    source = "Makefile" if name == TOOLS else "pyproject.toml"
    wrong = [_wrong(source, Requirement(one), held) for one in asked]
    for package, version in held.items():
        try:
            installed = distribution(package)
        except PackageNotFoundError:
            continue  # of a set that is not installed here; its own machine looks
        if installed.version.partition("+")[0] != version:
            continue
        # What a package's extras want, only whoever names them knows.
        wrong += [_wrong(package, one, held) for one in map(Requirement, installed.requires or ())]
    return sorted({f"{name}: {line}" for line in wrong if line})


# torch names its CUDA packages itself where it needs them (Makefile: PORTABLE).
LEFT_TO_TORCH = re.compile(r"nvidia-|cuda-|triton")


def _wrong(who: str, asked: Requirement, held: Pins) -> str:
    package = canonicalize_name(asked.name)
    if LEFT_TO_TORCH.match(package) or (asked.marker and not asked.marker.evaluate({"extra": ""})):
        return ""
    if package not in held:
        return f"{who} asks for {asked.name}, which is not pinned"
    if not asked.specifier.contains(held[package], prereleases=True):
        return f"{who} asks for {asked.name}{asked.specifier}, pinned is {held[package]}"
    return ""
