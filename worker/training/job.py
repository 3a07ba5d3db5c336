"""What a trainer is told to do: the same record from the command line and from the worker's line of JSON."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.dataset import FORMATS, Columns, Format, format_of
from app.recipe import Recipe
from worker.training import cell
from worker.training.failure import Failure


@dataclass(frozen=True)
class Job:
    """All paths are the supervisor's or a person's own, never a remote caller's."""

    recipe: Recipe
    data: Path
    format: Format
    model: Path
    out: Path
    validation: Path | None = None
    validation_format: Format = "jsonl"
    columns: Columns | None = None  # our keys to the training file's names for them
    validation_columns: Columns | None = None
    base_name: str = ""  # how the card calls the base model
    name: str = ""  # how the card calls the result
    resume: tuple[Path, ...] = field(default=())  # newest first
    keep: int | None = None  # checkpoints to keep; None: delete nothing
    cache: Path | None = None  # encoded data; None: below `out`
    fits: int | None = None  # examples per micro-step that an earlier attempt's memory left room for
    confined: bool = False  # to these paths, from the job's beginning on
    largest_file: int | None = None  # bytes, of those that a confined job writes

    def confine(self) -> None:
        """Leave this process nothing but the job's own files, where that was asked for."""
        if self.confined:
            read = (self.data, self.model, *self.resume, *([self.validation] if self.validation else []))
            cell.confine(read, (self.out, self.cache_folder), self.largest_file)

    @property
    def cache_folder(self) -> Path:
        """Where encoded data is kept."""
        return self.cache or self.out / "encoded"

    @classmethod
    def from_json(cls, line: str) -> "Job":
        """Raises Failure(invalid_recipe) when a key is missing or the recipe is not one."""
        said = json.loads(line)
        try:
            recipe = Recipe.model_validate(_tuples(said["recipe"]))
            return cls(
                recipe=recipe,
                data=Path(said["data"]),
                format=_format(said.get("format"), said["data"]),
                model=Path(said["model"]),
                out=Path(said["out"]),
                validation=Path(said["validation"]) if said.get("validation") else None,
                validation_format=_format(said.get("validation_format"), said.get("validation") or ""),
                columns=said.get("columns"),
                validation_columns=said.get("validation_columns"),
                base_name=said.get("base_name") or Path(said["model"]).name,
                name=said.get("name") or Path(said["out"]).name,
                resume=tuple(Path(folder) for folder in said.get("resume") or ()),
                keep=said.get("keep"),
                cache=Path(said["cache"]) if said.get("cache") else None,
                fits=said.get("fits"),
                confined=said.get("confine") is not None,
                largest_file=(said.get("confine") or {}).get("largest_file"),
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = str(first["loc"][0]) if first["loc"] else None
            raise Failure("invalid_recipe", f"{where or 'recipe'}: {first['msg']}", param=where) from None
        except (KeyError, TypeError) as error:
            raise Failure("invalid_recipe", f"the job lacks {error}") from None


def _tuples(recipe: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in recipe.items()}


def _format(said: str | None, path: str) -> Format:
    if said not in (None, *FORMATS):
        raise Failure("invalid_recipe", f"format is one of {', '.join(FORMATS)}, not {said}")
    return said or format_of(path)


def from_arguments(arguments: Sequence[str]) -> Job | None:
    """The job on the command line; None for `--wait`. Exits with status 2 on a bad line, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.training", description="Train a model from a recipe."
    )
    parser.add_argument("recipe", nargs="?", type=Path, help="a JSON file of hyperparameters, as in a job")
    parser.add_argument("--wait", action="store_true", help="import everything, then read the job from stdin")
    parser.add_argument("--job", type=Path, help="a file with the line of JSON that --wait would read")
    parser.add_argument("--method", choices=["supervised", "dpo"], default="supervised")
    parser.add_argument("--data", type=Path, help="training file")
    parser.add_argument("--format", choices=FORMATS, help="default: by the file's name")
    parser.add_argument("--columns", type=json.loads, help='JSON: our keys to yours, {"text": "review"}')
    parser.add_argument("--validation", type=Path, help="validation file")
    parser.add_argument("--validation-format", choices=FORMATS)
    parser.add_argument("--validation-columns", type=json.loads)
    parser.add_argument("--model", type=Path, help="folder of the base model")
    parser.add_argument("--out", type=Path, help="where checkpoints and the model go")
    parser.add_argument("--resume", type=Path, action="append", help="checkpoint folder; the newest first")
    parser.add_argument("--name", help="the result's name in its card")
    parser.add_argument("--base-name", help="the base model's name in the card")
    parser.add_argument("--keep", type=int, help="newest checkpoints to keep; default: all")
    parser.add_argument("--cache", type=Path, help="folder of encoded data; default: below --out")
    asked = parser.parse_args(arguments)
    if asked.wait:
        return None
    if asked.job is not None:
        return Job.from_json(asked.job.read_text(encoding="utf-8"))
    if missing := [name for name in ("recipe", "data", "model", "out") if getattr(asked, name) is None]:
        parser.error(f"missing: {', '.join(missing)}")
    try:
        hyperparameters = json.loads(asked.recipe.read_text(encoding="utf-8"))
    except OSError as error:
        parser.error(f"{asked.recipe}: {error.strerror}")
    return Job(
        recipe=Recipe.from_request(hyperparameters, asked.method),
        data=asked.data,
        format=_format(asked.format, asked.data.name),
        model=asked.model,
        out=asked.out,
        validation=asked.validation,
        validation_format=_format(asked.validation_format, asked.validation.name if asked.validation else ""),
        columns=asked.columns,
        validation_columns=asked.validation_columns,
        base_name=asked.base_name or asked.model.name,
        name=asked.name or asked.out.resolve().name,
        resume=tuple(asked.resume or ()),
        keep=asked.keep,
        cache=asked.cache,
    )
