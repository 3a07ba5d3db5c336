"""The training core on a machine that has torch, transformers and pydantic, and nothing else of ours."""

import json
import subprocess
import sys
from pathlib import Path

from app.tiny import model as tiny

# What the API, the worker and LoRA need, and a GPU box that only trains does not have.
ABSENT = ["accelerate", "celery", "fastapi", "kombu", "openai", "peft", "platformdirs", "psycopg"]
ABSENT += ["pydantic_settings", "redis", "sqlalchemy", "starlette", "structlog", "uvicorn"]
WITHOUT = (
    f"import sys, runpy; sys.modules.update(dict.fromkeys({ABSENT!r})); "
    "runpy.run_module('worker.training', run_name='__main__', alter_sys=True)"
)


def test_it_trains_where_nothing_else_is_installed(tmp_path: Path) -> None:
    recipe, data = tmp_path / "recipe.json", tmp_path / "rows.jsonl"
    recipe.write_text(json.dumps({"max_steps": 2, "total_train_batch_size": 4}))
    data.write_text('{"text": "Stir the soup for ten minutes."}\n' * 8)
    model = tiny.ensure(tmp_path / "tiny")
    arguments = [str(recipe), "--data", str(data), "--model", str(model), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["event"] == "finished"
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
