"""What a look is taken at: a file's bytes, a model's tokenizer, and the recipe between them."""

from pathlib import Path

from app import catalogue
from app.catalogue import Source
from app.errors import InvalidRequest, NotFound
from app.inspection import reports
from app.recipe import Recipe
from app.settings import Settings
from app.storage import Store
from app.tables import File, JsonObject

MATTERS = ("max_length", "excess_length", "train_on_inputs", "packing")


def of_file(row: File, store: Store) -> JsonObject:
    """As long as it takes to have the file here. Raises NotFound, and InvalidRequest for a file of no use in
    training."""
    if row.purpose != "fine-tune":
        raise InvalidRequest(
            f"{row.id} has purpose `{row.purpose}`; only files with purpose `fine-tune` are looked into.",
            param="file_id",
            code="invalid_file",
        )
    try:
        path = store.fetch(row.key or "", row.sha256)
    except FileNotFoundError as error:
        raise NotFound(f"The bytes of {row.id} are gone.", param="file_id") from error
    return {"path": str(path), "format": row.format, "columns": row.columns}


def model_folder(source: Source, settings: Settings, store: Store) -> Path:
    """Where the model's tokenizer and config lie, as long as it takes to have them here. Raises
    InvalidRequest where that is nowhere."""
    name = source.name
    try:
        return catalogue.locate(source.source, settings, store)
    except FileNotFoundError:
        if not source.source.startswith("hub:"):
            raise InvalidRequest(
                f"The folder of the model {name!r} is gone.", param="model", code="model_not_found"
            ) from None
        raise InvalidRequest(
            f"The model {name!r} has not been fetched from the hub yet; the first job that trains it does"
            " so. Until then name a model that is here: GET /v1/models lists base models of your own and"
            " tiny-gpt2.",
            param="model",
            code="model_not_fetched",
        ) from None


def question(
    store: Store, files: list[File], folder: Path | None, recipe: JsonObject
) -> tuple[JsonObject, str]:
    """What to ask the inspector about the training file (and the validation file), and the report's key.

    `recipe` as JSON, as a job's row has it. As long as it takes to have the files here. Raises NotFound,
    InvalidRequest.
    """
    held = [of_file(row, store) for row in files]
    asked: JsonObject = {
        **held[0],
        "folder": None if folder is None else str(folder),
        "validation": held[1] if len(held) > 1 else None,
        "recipe": _that_matters(recipe),
    }
    known = None if folder is None else stamp(folder)
    return asked, reports.key(asked, [row.id for row in files], [row.sha256 for row in files], known)


def _that_matters(recipe: JsonObject) -> JsonObject:
    """The recipe with what changes nothing about rows and tokens at its default: one report serves many."""
    kept = {name: recipe[name] for name in MATTERS if name in recipe}
    return Recipe.model_validate(kept).model_dump(mode="json")


def stamp(folder: Path) -> list[list[str | int]]:
    """Changes when the model's tokenizer, template or config do."""
    names = ("config.json", "generation_config.json", "tokenizer.json", "vocab.json", "merges.txt")
    more = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
    found: list[list[str | int]] = []
    for name in (*names, *more):
        path = folder / name
        if path.is_file():
            status = path.stat()
            found.append([name, status.st_size, status.st_mtime_ns])
    return found
