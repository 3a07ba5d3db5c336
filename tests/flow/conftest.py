"""The whole service on a home of its own, the official SDK outside."""

from collections.abc import Iterator

import pytest

from tests.flow import gpt2, secrets
from tests.flow.stack import QUICK, Stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    bases = tmp_path_factory.mktemp("bases")
    gpt2.write(bases / "small-gpt2")
    settings = {
        "FINETUNED_BASE_MODELS": str(bases),
        "FINETUNED_PREEMPT_AFTER": "0",
        # The most that the programs can say, for tests/flow/secrets.py to look through.
        "FINETUNED_LOG_LEVEL": "debug",
        **QUICK,
        **secrets.GIVEN,
    }
    stack = Stack(tmp_path_factory.mktemp("home"), settings)
    stack.start()
    try:
        yield stack
    finally:
        if stack.process.poll() is None:
            stack.stop()
