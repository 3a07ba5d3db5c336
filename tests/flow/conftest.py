"""The whole service on a home of its own, once for all files here that use it; the official SDK outside."""

from collections.abc import Iterator

import pytest

from tests.flow import gpt2, secrets
from tests.flow.stack import QUICK, Stack, running


@pytest.fixture(scope="session")
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
    with running(tmp_path_factory.mktemp("home"), settings) as stack:
        yield stack
