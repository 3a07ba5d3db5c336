"""How the database knows a folder of ours again: by its manifest, which names the SHA-256 of all its files.

A seal is a word that travels: whoever is given a source and its seal takes no other folder for it. Of a
checkpoint the row has the manifest's own SHA-256, of a model the manifest as JSON, whose bytes are not kept.
"""

import hashlib
import json
from typing import Any


def of_bytes(sha256: str) -> str:
    """By the SHA-256 of the manifest's bytes."""
    return f"manifest:{sha256}"


def of_files(files: Any) -> str:
    """By the manifest's `files`, `{name: {"sha256": …}}`. Raises ValueError for anything else."""
    try:
        digests = {str(name): str(facts["sha256"]) for name, facts in files.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("not the files of a manifest") from error
    return f"files:{hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()}"


def fits(seal: str, manifest: bytes) -> bool:
    """Whether these are a manifest's bytes that the seal was made of."""
    if seal == of_bytes(hashlib.sha256(manifest).hexdigest()):
        return True
    try:
        return seal == of_files(json.loads(manifest)["files"])
    except (ValueError, KeyError, TypeError):
        return False
