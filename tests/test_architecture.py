"""The layout that docs and design promise, held to by machines: imports, house rules, sizes, settings."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.routing import iter_route_contexts

from app.access import calls_of
from app.main import create_app
from app.settings import Settings
from tests.rules import EXCEPTIONS, RULES, Rule

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 300  # lines: one sitting
# Names that exclude nothing.
VAGUE = re.compile(r"(utils?|helpers?|common|misc|core|base|service|tools?)|.*_?(manager|helper|utils?)")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    # It breaks lines to the width of the terminal, names of contracts too.
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_import_contract_holds() -> None:
    report = lint_imports(ROOT)
    assert report.returncode == 0, report.stdout


def test_an_import_across_a_line_breaks_the_contract(tmp_path: Path) -> None:
    wrong = {
        "app.recipe": "torch",
        "app.routes.jobs": "worker.tasks",
        "worker.training.events": "app.tables",
        "worker.training.data": "sqlalchemy",
        "worker.tasks": "worker.training.loop",
    }
    for folder in ("app", "worker"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.json")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, imported in wrong.items():
        with (tmp_path / f"{module.replace('.', '/')}.py").open("a", encoding="utf-8") as file:
            file.write(f"\nimport {imported}\n")
    report = lint_imports(tmp_path)
    assert report.returncode != 0
    assert "0 kept" in report.stdout
    assert [f"{m} -> {i}" for m, i in wrong.items() if f"{m} -> {i}" not in report.stdout] == []


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("app.main", {"torch", "transformers", "numpy", "peft", "worker"}),
        ("app.cli", {"torch", "transformers", "numpy", "fastapi", "sqlalchemy", "celery", "worker"}),
        ("worker.main", {"torch", "transformers", "peft", "fastapi", "uvicorn", "worker.training.loop"}),
        (
            "worker.training.loop",
            {"fastapi", "starlette", "uvicorn", "celery", "kombu", "sqlalchemy", "psycopg", "redis"}
            | {"peft"}  # by jobs that want it
            | {"app.settings", "app.database", "app.tables", "app.lifecycle", "app.main"},
        ),
        ("worker.training.events", {"torch", "transformers", "numpy"}),
        ("worker.training.manifest", {"torch", "transformers", "numpy"}),
    ],
)
def test_a_module_loads_nothing_of_what_it_must_not(module: str, forbidden: set[str]) -> None:
    """Contracts are read from the source; this cannot be fooled by an import that hides in a function."""
    loaded = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys; print(*sys.modules)"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": "postgresql://nobody@localhost/nothing", "REDIS_URL": "redis://"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    assert not forbidden & set(loaded.stdout.split())


@pytest.mark.parametrize("rule", {rule.name: rule for rule in RULES}.values(), ids=lambda rule: rule.name)
def test_the_code_keeps_the_house_rule(rule: Rule) -> None:
    where = sources("app", "worker", "migrations")
    if rule.name in ("models_bring_no_code", "data_is_never_run"):
        where += sources("benchmarks", "examples")
    found = [
        f"{shown(path)}:{line} {complaint}"
        for path in where
        if not excepted(rule, path)
        for line, complaint in rule.check(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def excepted(rule: Rule, path: Path) -> bool:
    return any(rule.name == name and shown(path).startswith(prefix) for name, prefix in EXCEPTIONS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}: {rule.breach}")
def test_a_breach_of_a_house_rule_is_seen(rule: Rule) -> None:
    assert list(rule.check(ast.parse(rule.breach)))


@pytest.mark.parametrize("place", EXCEPTIONS, ids=str)
def test_an_exception_from_a_rule_is_still_needed(place: tuple[str, str]) -> None:
    name, prefix = place
    rule = next(rule for rule in RULES if rule.name == name)
    paths = [path for path in sources("app", "worker") if shown(path).startswith(prefix)]
    assert any(list(rule.check(ast.parse(path.read_text(encoding="utf-8")))) for path in paths)


def test_a_file_is_one_sitting() -> None:
    lengths = {shown(path): len(path.read_text().splitlines()) for path in sources("app", "worker")}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_a_module_is_named_after_what_it_holds() -> None:
    assert [shown(path) for path in sources("app", "worker") if VAGUE.fullmatch(path.stem)] == []


def test_a_package_imports_nothing_by_being_imported() -> None:
    empty = [path for path in sources("app", "worker", "tests") if path.name == "__init__.py"]
    assert [shown(path) for path in empty if path.read_text().strip()] == []


def variables() -> set[str]:
    """Every environment variable that Settings reads, under its own name."""
    return {f"FINETUNED_{name.upper()}" for name in Settings.model_fields}


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert sorted(name for name in variables() if not re.search(rf"\b{name}\b", page)) == []


def test_no_page_names_a_setting_that_does_not_exist() -> None:
    pages = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "Dockerfile",
        ROOT / "docker-compose.yml",
    ]
    named = {
        (shown(page), name)
        for page in pages
        for name in re.findall(r"\bFINETUNED_[A-Z][A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8"))
    }
    assert sorted((page, name) for page, name in named if name not in variables()) == []


def test_no_dependency_of_a_route_takes_a_thread(tmp_path: Path) -> None:
    """FastAPI sends a plain function to a thread: a request that asks for eight things waits for eight."""
    app = create_app(Settings(home=tmp_path))
    found = {
        call
        for route in iter_route_contexts(app.routes)
        for call in calls_of(getattr(route, "dependant", None))
        if not isinstance(call, type)
    }
    assert len(found) > 10
    plain = [call for call in found if not _is_asynchronous(call)]
    assert plain == []


def _is_asynchronous(call: object) -> bool:
    return any(
        inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one)
        for one in (call, getattr(call, "__call__", None))  # noqa: B004  # of an object
    )
