"""How a file says that it is to be read, in the fields of its form: `format`, and `columns[ours]=theirs`."""

from collections.abc import Mapping

from app.dataset import ENDINGS, FORMATS, Columns, Format, format_of
from app.errors import InvalidRequest
from app.rows import KEYS

MAX_NAME = 256  # characters of a column's name


def format_asked(filename: str, asked: str | None) -> Format:
    if asked is None:
        return format_of(filename)
    for known in FORMATS:
        if asked == known:
            return known
    raise InvalidRequest(
        f"format must be one of {', '.join(FORMATS)}; without it the file's name tells"
        f" ({', '.join(ENDINGS)}, anything else is jsonl).",
        param="format",
    )


def columns_of(fields: Mapping[str, str]) -> Columns | None:
    """`columns[text]=review` among the fields of a form. Raises InvalidRequest."""
    found: dict[str, str] = {}
    for name, value in fields.items():
        if not is_column(name):
            continue
        key = name[len("columns[") : -1]
        if key not in KEYS:
            raise InvalidRequest(
                f"columns takes these keys: {', '.join(sorted(set(KEYS)))}.", param=name[:100]
            )
        if not value or len(value) > MAX_NAME or "\0" in value:
            raise InvalidRequest(f"A column's name has 1 to {MAX_NAME} characters.", param=f"columns[{key}]")
        found[key] = value
    return found or None


def is_column(field: str) -> bool:
    return field.startswith("columns[") and field.endswith("]")
