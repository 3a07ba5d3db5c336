"""What the pages say, as far as a machine can check it."""

import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from app.inspection.findings import KINDS
from app.main import create_app
from app.recipe import Recipe
from app.reference import render
from app.settings import Settings

ROOT = Path(__file__).parent.parent
CHORES = ["help", "setup", "demo", "up", "test", "check", "lock", "clean", "chaos", "format", "audit", "sbom"]
PAGES = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        if not target.startswith(("http:", "https:")):
            assert (ROOT / page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_chore_of_a_page_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for chore in re.findall(r"\bmake ([a-z]+)\b(?= |`|$)", (ROOT / page).read_text(), re.MULTILINE):
        if chore in CHORES:
            assert re.search(rf"^{chore}:", makefile, re.MULTILINE), chore


def test_what_shows_that_it_is_secure_is_there() -> None:
    table = (ROOT / "docs/security.md").read_text().partition("## What shows it")[2]
    named = re.findall(r"`(tests/[\w/.]+)`", table)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).is_file()] == []
    tested = {path.name for path in (ROOT / "tests/security").glob("test_*.py")}
    assert tested == {Path(name).name for name in named if name.startswith("tests/security/test_")}


def test_every_setting_stands_on_its_page_with_its_default_and_meaning() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    for name, field in Settings.model_fields.items():
        row = next(line for line in page.splitlines() if f"`FINETUNED_{name.upper()}`" in line)
        assert (field.description or "?") in row
        default = field.default
        if isinstance(default, timedelta):
            assert f"`{int(default.total_seconds())}`" in row
        elif isinstance(default, str | int):
            assert f"`{default}`" in row


def test_every_dependency_has_its_reason() -> None:
    page = (ROOT / "docs/dependencies.md").read_text().lower()
    project = (ROOT / "pyproject.toml").read_text()
    listed = project[project.index("dependencies = [") : project.index("[project.scripts]")]
    for name in re.findall(r'^\s*"?([A-Za-z0-9_-]+)(?:\[[a-z,]+\])?[>=]=', listed, re.MULTILINE):
        assert name.lower() in page, name


def test_every_finding_stands_on_its_page_with_what_it_means_and_what_to_do() -> None:
    page = (ROOT / "docs/data.md").read_text()
    for code, kind in KINDS.items():
        assert f"| `{code}` | {kind.level} | {kind.meaning} {kind.action} |" in page


def test_the_reference_names_every_call_and_every_hyperparameter_and_loads_nothing() -> None:
    app = create_app(Settings(database_url="postgresql://x/y", redis_url="redis://x"))
    document = app.openapi()
    page = render(document, "http://127.0.0.1:8000/")
    for path, operations in document["paths"].items():
        for verb in operations:
            assert f"{verb.upper()} {path}" in page
    for field in Recipe.model_fields:
        assert f"<code>{field}</code>" in page
    assert not re.search(r"<(script|link|img|iframe)\b|url\(|@import", page)


def test_make_without_a_chore_lists_them_all() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for chore in ("setup", "demo", "up", "test", "check"):
        assert f"make {chore}" in said
