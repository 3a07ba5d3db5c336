"""`python -m app.inspection`: one look into one file, asked for as JSON on stdin, answered as JSON on stdout.

A process of its own, because what it reads is not to be trusted: a table may unfold to a thousand times its
size, a chat template may never end, and a decoder in C may crash. Memory and time end here, not in the API.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app import dataset
from app.dataset import DatasetError
from app.encoding import EncodingError
from app.inspection.refusal import Refused
from app.recipe import Recipe

MEMORY_BYTES = 4 * 1024**3  # data of this process; a row group of a table must fit
NICENESS = 10  # behind the API, the trainer and the generator
Said = dict[str, Any]


def _check(said: Said) -> Said:
    report = dataset.check(Path(said["path"]), said["format"], said["columns"])
    return asdict(report)


def _preview(said: Said) -> Said:
    from app.inspection import preview

    return preview.make(said, Recipe.model_validate(_tuples(said["recipe"])))


def _report(said: Said) -> Said:
    from app.inspection import report

    return report.make(said, Recipe.model_validate(_tuples(said["recipe"])))


def _count(said: Said) -> Said:
    from app.inspection import tally

    return tally.make(said, Recipe.model_validate(_tuples(said["recipe"])))


VERBS: dict[str, Callable[[Said], Said]] = {
    "check": _check,
    "preview": _preview,
    "report": _report,
    "count": _count,
}


def _tuples(recipe: Said) -> Said:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in recipe.items()}


def _bound(seconds: int) -> None:
    """Whatever happens to the one who asked, this process ends."""
    os.nice(NICENESS)
    allowed = resource.getrlimit(resource.RLIMIT_DATA)[1]
    memory = MEMORY_BYTES if allowed == resource.RLIM_INFINITY else min(MEMORY_BYTES, allowed)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(seconds)


def answer(said: Said) -> Said:
    """`{"answer": …}`, or `{"error": {code, message, param}}`."""
    try:
        return {"answer": VERBS[said["verb"]](said)}
    except Refused as error:
        return {"error": error.body}
    except DatasetError as error:
        return {"error": {"code": "invalid_file", "message": str(error), "param": "file_id"}}
    except EncodingError as error:
        code, param = ("invalid_file", "file_id") if error.line else ("invalid_model", "model")
        return {"error": {"code": code, "message": str(error), "param": param}}
    except (MemoryError, RecursionError):
        return {"error": {"code": "too_costly", "message": "It takes too much memory.", "param": "file_id"}}


def main() -> None:
    said = json.load(sys.stdin)
    _bound(said["seconds"])
    print(json.dumps(answer(said)))


if __name__ == "__main__":
    main()
