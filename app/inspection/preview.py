"""A few rows as the model will be given them: every token, whether it is learned, and what is cut away."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers.decoders import DecodeStream

from app import dataset
from app.dataset import Example, Text
from app.inspection.lens import Lens, Seen
from app.inspection.refusal import Refused
from app.recipe import Recipe

SHOWN_TOKENS = 20_000  # of all rows together; of one that is beyond only how many they are
SHOWN_WINDOWS = 100  # of a row; it may have been cut into thousands
SHOWN_CHARACTERS = 500  # of what is cut away
Said = dict[str, Any]


def make(said: Said, recipe: Recipe) -> Said:
    """`said` has path, format, columns, folder, offset, limit.

    Raises Refused, DatasetError, EncodingError.
    """
    try:
        lens = Lens(Path(said["folder"]), recipe)
    except ValueError as error:
        raise Refused("invalid_value", str(error), "hyperparameters.max_length") from None
    offset, limit = said["offset"], said["limit"]
    examples = dataset.read(Path(said["path"]), said["format"], said["columns"])
    chosen = list(islice(_rows(examples, offset), limit + 1))
    budget = SHOWN_TOKENS
    data = []
    for number, (pieces, complete) in enumerate(chosen[:limit]):
        shown: Said = {"row": offset + number, "complete": complete}
        for row in lens.look(pieces):
            told = _row(lens, row, budget)
            budget -= row.tokens if "ids" in told else 0
            shown.update(told if row.answer is None else {"line": row.line, row.answer: told})
        data.append(shown)
    return {
        "max_length": lens.max_length,
        "excess_length": recipe.excess_length,
        "train_on_inputs": recipe.train_on_inputs,
        "packing": recipe.packing,
        "data": data,
        "has_more": len(chosen) > limit,
    }


def _rows(examples: Iterator[Example], offset: int) -> Iterator[tuple[list[Example], bool]]:
    """Rows from `offset` on, and whether they are shown whole: of a long document only its first piece is."""
    number = -1
    for example in examples:
        number += not isinstance(example, Text) or example.first
        if number < offset or (isinstance(example, Text) and not example.first):
            continue
        if isinstance(example, Text) and not example.last:
            yield [Text(example.line, example.text, first=True, last=True)], False
        else:
            yield [example], True


def _row(lens: Lens, row: Seen, budget: int) -> Said:
    kept = row.windows[-1].stop if row.windows else 0
    said: Said = {
        "line": row.line,
        "tokens": row.tokens,
        "trained_tokens": row.trained_tokens(),
        "outcome": row.outcome,
        "windows": [
            {"start": window.start, "stop": window.stop, "trained": row.targets(window)}
            for window in row.windows[:SHOWN_WINDOWS]
        ],
        "examples": len(row.windows),
        "cut": None,
    }
    if row.outcome in ("truncated", "dropped"):
        said["cut"] = {
            "tokens": row.tokens - kept,
            "text": lens.encoder.tokenizer.decode(row.ids[kept : kept + SHOWN_CHARACTERS])[:SHOWN_CHARACTERS],
        }
    if row.tokens <= budget:
        said["ids"] = row.ids
        said["pieces"] = _pieces(lens, row.ids)
        said["learned"] = _learned(row)
    return said


def _learned(row: Seen) -> list[int]:
    """1 for each token of the row that is a target in one of its windows."""
    marks = [0] * row.tokens
    for window in row.windows:
        for span in row.targets(window):
            marks[span.start : span.stop] = [1] * (span.stop - span.start)
    return marks


def _pieces(lens: Lens, ids: list[int]) -> list[str]:
    """The text of each token; joined they are the row. Of a character cut in two the last token has all."""
    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(lens.encoder.tokenizer, token) or "" for token in ids]
