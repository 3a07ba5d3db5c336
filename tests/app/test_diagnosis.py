"""Each recorded trouble is recognised, health is not mistaken for one, and the API says the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.diagnosis.course import Course, Point, smooth
from app.diagnosis.rules import diagnose
from app.recipe import Recipe

CURVES = Path(__file__).parent / "curves"
# What each recorded run shows.
TROUBLES = {
    "healthy": [],
    "overfitting": ["overfitting"],
    "underfitting": ["underfitting"],
    "still_falling": ["underfitting"],
    "diverging": ["diverging"],
    "warmup_longer_than_run": ["warmup_longer_than_run"],
    "too_few_steps": ["too_few_steps"],
    "slow_training": ["slow_training"],
    "never_stops": ["never_stops"],
}
# What runs as short as these show besides, truly.
BESIDES = {"underfitting", "never_stops", "slow_training"}


def recorded(name: str) -> Course:
    said: dict[str, Any] = json.loads((CURVES / f"{name}.json").read_text())
    curves = {k: [Point(*p) for p in said[k]] for k in ("loss", "valid_loss", "speed", "ended_shares")}
    return Course(**said | curves)


def codes(course: Course) -> list[str]:
    return [finding.code for finding in diagnose(course)]


@pytest.mark.parametrize(("name", "wanted"), TROUBLES.items())
def test_a_recorded_run_shows_its_trouble_and_none_that_it_has_not(name: str, wanted: list[str]) -> None:
    found = codes(recorded(name))
    assert set(wanted) <= set(found)
    assert set(found) <= set(wanted) | BESIDES if wanted else not found


@pytest.mark.parametrize("name", [name for name, wanted in TROUBLES.items() if wanted])
def test_every_remedy_is_a_recipe_with_that_change_made(name: str) -> None:
    course = recorded(name)
    for finding in diagnose(course):
        assert finding.says.endswith(".")
        assert finding.remedies
        for remedy in finding.remedies:
            batches = {"train_batch_size", "gradient_accumulation_steps"} & set(remedy.hyperparameters)
            # What is null does not apply; a factor on the automatic rate does not go with a rate.
            given = {
                k: v for k, v in course.recipe.items() if v is not None and k != "learning_rate_multiplier"
            }
            changed = {**given, **remedy.hyperparameters}
            assert "total_train_batch_size" in changed or not batches
            Recipe.from_request({k: tuple(v) if isinstance(v, list) else v for k, v in changed.items()})


def test_the_known_remedies_are_among_those_offered() -> None:
    def offered(name: str) -> set[str]:
        return {
            key for finding in diagnose(recorded(name)) for r in finding.remedies for key in r.hyperparameters
        }

    assert "learning_rate" in offered("underfitting")
    assert {"num_epochs", "weight_decay", "dropout"} <= offered("overfitting")
    assert "train_batch_size" in offered("slow_training")


def test_nothing_is_said_before_there_is_anything_to_judge() -> None:
    healthy = recorded("healthy")
    young = Course(
        **{**vars(healthy), "loss": healthy.loss[:2], "valid_loss": (), "speed": (), "finished": False}
    )
    assert codes(young) == []
    assert codes(Course(**{**vars(young), "loss": ()})) == []
    unresolved = {**healthy.recipe, "learning_rate": "auto"}
    assert codes(Course(**{**vars(recorded("diverging")), "recipe": unresolved})) == []


def test_a_loss_that_is_no_number_is_divergence() -> None:
    course = Course(**{**vars(recorded("healthy")), "error_code": "non_finite", "finished": False})
    assert codes(course) == ["diverging"]


def test_smoothing_keeps_the_ends_and_forgets_spikes() -> None:
    points = [Point(n, 100.0 if n == 50 else 1.0) for n in range(1, 102)]
    smoothed = smooth(points)
    assert len(smoothed) <= 25
    assert smoothed[-1].step == 101
    assert {point.value for point in smoothed} == {1.0}
