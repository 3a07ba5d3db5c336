"""Rows of a Parquet file, a few at a time. Only this module loads pyarrow.

A row's line is its number, counted from 1.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.examples import DatasetError
from app.lines import MAX_LINE_BYTES
from app.rows import KEYS, Columns, Found, check_header, named, table_row
from app.strict_json import BadJson

BATCH = 64  # rows decoded at once: a row may have a megabyte


def rows(path: Path, columns: Columns | None) -> Iterator[Found]:
    """Every row, bad ones as errors. A file that cannot be read at all is one error."""
    try:
        with pq.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
            names = file.schema_arrow.names
            check_header(names, columns)
            wanted = set(columns.values()) if columns else set(KEYS)
            number = 0
            for batch in file.iter_batches(BATCH, columns=[n for n in names if n in wanted]):
                for cells in batch.to_pylist():
                    number += 1
                    yield _row(number, cells, columns, check_size=batch.nbytes > MAX_LINE_BYTES)
    except DatasetError as error:
        yield error
    except (pa.ArrowMemoryError, MemoryError):
        yield DatasetError(1, "needs too much memory to be read; write it in smaller row groups")
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        yield DatasetError(1, f"not Parquet that can be read: {str(error)[:200]}")


def _row(number: int, cells: dict[str, Any], columns: Columns | None, check_size: bool) -> Found:
    try:
        row = {name: _present(cell) for name, cell in cells.items()}
        if check_size and len(json.dumps(row, default=str)) > MAX_LINE_BYTES:
            raise DatasetError(number, f"longer than {MAX_LINE_BYTES:,} bytes")
        return table_row(number, named(number, row, columns))
    except BadJson as error:
        return DatasetError(number, error.message)
    except DatasetError as error:
        return error


def _present(value: Any) -> Any:
    """A struct has all of its type's keys in every row; those that are null were not there."""
    if isinstance(value, dict):
        return {key: _present(item) for key, item in value.items() if item is not None}
    if isinstance(value, str) and "\0" in value:
        raise BadJson("a NUL character, which is no text")
    return [_present(item) for item in value] if isinstance(value, list) else value
