"""What a trainer loads before it knows its job: tests/test_architecture.py looks for what it must not."""

from transformers.utils import import_utils

from worker.training import schedule


def test_the_library_that_found_peft_missing_for_a_moment_finds_it_again() -> None:
    assert schedule.utils.is_peft_available is import_utils.is_peft_available
    assert schedule.utils.is_peft_available()
