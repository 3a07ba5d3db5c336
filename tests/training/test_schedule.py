"""What a trainer loads before it knows its job."""

import subprocess
import sys


def test_peft_is_loaded_by_the_jobs_that_want_it_alone() -> None:
    """And the library that found it missing for a moment finds it again."""
    script = (
        "import sys, worker.training.loop; from transformers.utils import is_peft_available;"
        "sys.exit('peft' in sys.modules or not is_peft_available())"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
