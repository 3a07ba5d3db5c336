"""What is said about a run's end, against a clock that knows it."""

from datetime import UTC, datetime, timedelta

import pytest

from worker import pace
from worker.training.events import Evaluated, Prepared, Step

FIRST = 30.0  # seconds of the first step, which warms up


def prepared(steps: int, eval_steps: int, save_steps: int, held: int) -> Prepared:
    recipe = {"total_train_batch_size": 10, "eval_steps": eval_steps, "save_steps": save_steps}
    return Prepared(100, 1, 1, held, steps, 10, {}, recipe, "cpu", "fp32", 1)


def step(number: int) -> Step:
    return Step(number, 0.1, 1.0, 0.1, 1.0, 100, 100 * number, 50.0, 1, False)


class Course:
    """A run whose every duration is known: seconds of a step, of an evaluation and of a saving."""

    def __init__(
        self, steps: int, eval_steps: int, save_steps: int, evaluation: float, saving: float
    ) -> None:
        self.steps, self.evaluation, self.saving = steps, evaluation, saving
        self.eval_steps, self.save_steps = eval_steps, save_steps
        self.pace = pace.Pace()
        self.pace.hear(prepared(steps, eval_steps, save_steps, 10 if evaluation else 0), 0)

    def times(self) -> list[float]:
        """When each step ends, and at last when all has ended."""
        at, times = 0.0, []
        for number in range(1, self.steps + 1):
            at += FIRST if number == 1 else 2.0
            times.append(at)
            last = number == self.steps
            at += self.evaluation * (last or number % self.eval_steps == 0)
            at += self.saving * (last or number % self.save_steps == 0)
        return [*times, at]

    def left(self) -> list[tuple[float, float | None]]:
        """After each step: the seconds that are left, and those that are said to be."""
        *ends, end = self.times()
        found: list[tuple[float, float | None]] = []
        for number, at in enumerate(ends, 1):
            before = datetime.now(UTC)
            said = self.pace.hear(step(number), at)["estimated_finish"]
            if (number % self.eval_steps == 0) and self.evaluation:
                self.pace.hear(Evaluated(number, 0.1, 1.0, 2.7, 0.5, 10), at + self.evaluation)
            found.append((end - at, said and (said - before) / timedelta(seconds=1)))
        return found


@pytest.mark.parametrize(
    ("eval_steps", "save_steps", "evaluation", "saving"),
    [(10, 10, 20.0, 5.0), (10, 25, 20.0, 5.0), (7, 3, 4.0, 1.0), (1000, 1000, 0.0, 0.0), (1, 1000, 3.0, 0.0)],
)
def test_the_end_is_foretold_with_evaluations_and_saving(
    eval_steps: int, save_steps: int, evaluation: float, saving: float
) -> None:
    told = Course(100, eval_steps, save_steps, evaluation, saving).left()
    measured = max(eval_steps, save_steps) if evaluation else 3
    for true, said in told[measured + 2 :] if measured < 100 else told[3:]:
        assert said == pytest.approx(true, rel=0.05, abs=max(1.0, saving))


def test_nothing_is_said_before_anything_is_measured() -> None:
    told = [said for _, said in Course(100, 50, 50, 20.0, 5.0).left()]
    assert told[:2] == [None, None]
    assert None not in told[3:]


def test_the_first_step_which_warms_up_does_not_count() -> None:
    true, said = Course(100, 1000, 1000, 0.0, 0.0).left()[5]
    assert said == pytest.approx(true, rel=0.02, abs=1)


def test_an_evaluation_that_was_not_measured_yet_is_taken_for_a_third_of_a_pass() -> None:
    told = Course(100, 50, 50, 2.0 / 3, 0.0).left()
    for true, said in told[5:]:
        assert said == pytest.approx(true, rel=0.03, abs=1)


def test_the_speed_counts_evaluations_and_saving() -> None:
    course = Course(20, 5, 5, 2.0, 0.0)
    course.left()
    # 19 steps of 2 s and 3 evaluations between them of 2 s, 100 tokens a step.
    assert course.pace.tokens_per_second == pytest.approx(1900 / (19 * 2 + 3 * 2))


def test_a_resumed_run_measures_from_its_own_first_step() -> None:
    course = pace.Pace()
    course.hear(prepared(100, 1000, 1000, 0), 0)
    said = [course.hear(step(n), 1000.0 + n)["estimated_finish"] for n in range(51, 60)]
    assert said[0] is None
    left = (said[-1] - datetime.now(UTC)) / timedelta(seconds=1)
    assert left == pytest.approx(41, abs=1)
