"""The dashboard and the alert rules speak of figures that exist, and each alert has a page to turn to."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.database import WorkerDatabase
from app.tables import Worker
from tests.app.conftest import Api
from tests.operations.conftest import Scrape
from tests.operations.test_metrics import make_job
from tests.stand_ins.reporter import Reporter

ROOT = Path(__file__).parents[2]
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "deploy/grafana/finetuned.json").read_text())
PAGE = (ROOT / "docs/operations.md").read_text()
ELSEWHERE = {"up"}  # made by Prometheus itself
NAME = re.compile(r"\b(?:finetuned|process|python)_[a-z0-9_]+|\bup\b")
SELECTOR = re.compile(r"\{([^}]*)\}")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for rule in ALERTS:
        yield rule["expr"]
    for panel in panels():
        yield from (target["expr"] for target in panel["targets"])


@pytest.fixture(scope="module")
def job(api: Api) -> Iterator[str]:
    """Something of everything: a job that trains, a worker that was heard of."""
    database = WorkerDatabase(api.settings)
    with api.client() as client:
        job = make_job(client)
    with database.transaction() as session:
        session.add(Worker(id="w", host="h", slots=1, busy=1, version="1"))
    worker = Reporter(api.settings, database, job)
    worker.prepare()
    worker.steps(1, 2)
    yield job
    database.close()


def test_every_figure_that_is_asked_for_exists_with_these_labels(scrape: Scrape, job: str) -> None:
    told: dict[str, set[str]] = {}
    for name in scrape():
        bare, _, labels = name.partition("{")
        told.setdefault(bare, set()).update(re.findall(r'(\w+)="', labels))
    for expression in expressions():
        for name in NAME.findall(expression):
            assert name in told or name in ELSEWHERE, name
        for name, selector in re.findall(r"(\w+)\{([^}]*)\}", expression):
            wanted = set(re.findall(r"(\w+)\s*(?:=|!)", selector)) - {"job", "instance"}
            assert wanted <= told.get(name, wanted), expression
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in told}
    ours = {name for name in families if name.startswith("finetuned_") and not name.endswith("_created")}
    on_page = {name for name in NAME.findall(PAGE) if name.startswith("finetuned_")}
    assert ours - on_page == set(), "the page has a row for every figure"
    assert on_page - families == set(), "and none for one that is gone"


def test_values_of_states_that_rules_name_are_ones_that_occur(scrape: Scrape, job: str) -> None:
    """A rule on `status="success"` would never fire, and nobody would know."""
    told = scrape()
    occurring = {pair for name in told for pair in re.findall(r'(\w+="[^"]*")', name)}
    for expression in expressions():
        for selector in SELECTOR.findall(expression):
            for label, operator, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', selector):
                if label == "job" or (label, value) == ("status", "500"):
                    continue
                for each in value.split("|") if operator == "=~" else [value]:
                    assert f'{label}="{each}"' in occurring, expression


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert (page, anchor) == ("docs/operations.md", rule["alert"].lower())
    heading = f"### {rule['alert']}\n"
    assert heading in PAGE
    assert len(PAGE.split(heading)[1].split("\n###")[0].split()) > 15, "and says what to do"


def test_no_page_is_left_of_an_alert_that_is_gone() -> None:
    headings = re.findall(r"^### (Finetuned\w+)$", PAGE, re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in ALERTS)


def test_the_expressions_are_balanced_and_the_dashboard_has_no_two_panels_in_one_place() -> None:
    """No PromQL parser is at hand here; what is seen is a bracket that is missing, as after a bad edit."""
    for expression in expressions():
        for opening, closing in ("()", "{}", "[]"):
            assert expression.count(opening) == expression.count(closing), expression
        assert expression.count('"') % 2 == 0
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_asks_where_the_figures_are() -> None:
    configuration = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = configuration["scrape_configs"]
    assert (job["job_name"], job["metrics_path"]) == ("finetuned", "/metrics")
    assert all((ROOT / "deploy/prometheus" / name).exists() for name in configuration["rule_files"])
