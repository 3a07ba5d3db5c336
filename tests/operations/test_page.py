"""docs/operations.md: its commands are run, its figures are those of the formulas."""

import os
import re
import subprocess
import sys
from pathlib import Path

from app.database import WorkerDatabase
from app.footprint import estimate
from app.recipe import Recipe
from app.weights import Size, Tensor
from tests.app.conftest import Api
from tests.operations.test_metrics import make_job
from tests.stand_ins.reporter import Reporter
from worker.room import least

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
BLOCKS = re.findall(r"^```(.*?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
# A restore goes into a database of its own: that of this test is in use.
SHELL = """set -euo pipefail
finetuned() {{
  local database="$DATABASE_URL"
  if [ "$1" = restore ]; then database="$NEW_DATABASE"; fi
  env DATABASE_URL="$database" {python} -m app.cli "$@"
}}
"""


def test_every_command_is_run_here_or_marked_as_one_for_elsewhere() -> None:
    assert {mark for mark, _ in BLOCKS} == {"sh run", "sh elsewhere"}
    assert not re.search(r"^ {4}\S", PAGE, re.MULTILINE), "no command hides in an indented block"
    for mark, block in BLOCKS:
        if mark == "sh elsewhere":
            assert re.search(r"docker|prom", block), block


def test_the_commands_of_the_page_work_in_its_order(
    api: Api, tmp_path: Path, empty_database_url: str
) -> None:
    database = WorkerDatabase(api.settings)
    with api.client() as client:
        job = make_job(client)
        worker = Reporter(api.settings, database, job)
        worker.steps(1)
        worker.save(1)
        (checkpoint,) = client.fine_tuning.jobs.checkpoints.list(job).data
        worker.succeed()
    database.close()
    assert api.settings.database_url is not None
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "URL": api.url,
        "KEY": api.key,
        "JOB": job,
        "CHECKPOINT": checkpoint.id,
        "BACKUPS": str(tmp_path / "backups"),
        "NEW_HOME": str(tmp_path / "new"),
        "NEW_DATABASE": empty_database_url,
        "FINETUNED_HOME": str(api.settings.home),
        "DATABASE_URL": api.settings.database_url.get_secret_value(),
    }
    script = SHELL.format(python=sys.executable) + "\n".join(
        block for mark, block in BLOCKS if mark == "sh run"
    )
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ('finetuned_jobs{status="succeeded"}', '"pinned":true', "Backed up", "Restored to"):
        assert word in done.stdout, done.stdout
    assert (tmp_path / "new" / "key").read_text() == (api.settings.home / "key").read_text()


def gpt2(layers: int, width: int) -> Size:
    """As the published files have it."""
    names = {
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width),
        "attn.c_proj.bias": (width,),
        "mlp.c_fc.weight": (width, 4 * width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (4 * width, width),
        "mlp.c_proj.bias": (width,),
    }
    tensors = [Tensor("wte.weight", (50_257, width)), Tensor("wpe.weight", (1024, width))]
    tensors += [Tensor(f"h.{n}.{name}", shape) for n in range(layers) for name, shape in names.items()]
    tensors += [Tensor(f"norm.{n}", (width,)) for n in range(4 * layers + 2)]
    return Size(tuple(tensors), layers, width, 50_257)


def test_the_sizes_on_the_page_are_those_of_the_formulas() -> None:
    full, lora = (
        Recipe.from_request({"num_epochs": 3}),
        Recipe.from_request({"num_epochs": 3, "lora_rank": 16}),
    )
    for name, layers, width in (
        ("gpt2", 12, 768),
        ("gpt2-medium", 24, 1024),
        ("gpt2-large", 36, 1280),
        ("gpt2-xl", 48, 1600),
    ):
        size = gpt2(layers, width)
        figures = (
            estimate(full, size, "cuda", 8 * 1024).total,
            estimate(lora, size, "cuda", 8 * 1024).total,
            estimate(full, size, "cpu", 1024).total,
            least(full, size),
            least(lora, size),
        )
        cells = " | ".join(f"{figure / 1e9:.1f}" for figure in figures)
        assert f"| {name} | {round(size.parameters / 1e6):,} M | {cells} |" in PAGE
