"""What nobody but its owner may see of a whole running service, and where it must not be."""

from collections.abc import Iterator
from pathlib import Path

# Of the service's environment; what they open does not exist.
GIVEN = {
    "HF_TOKEN": "hf_canary_of_the_hub",
    "WANDB_API_KEY": "canary-of-wandb",
    "AWS_SECRET_ACCESS_KEY": "canary-of-a-bucket",
    "FINETUNED_UPSTREAMS": '{"elsewhere": {"url": "http://127.0.0.1:9/v1", "key": "canary-of-an-upstream"}}',
    "ANYTHING_ELSE": "canary-of-something-unknown",
}
CANARIES = (*(GIVEN[name] for name in GIVEN if name != "FINETUNED_UPSTREAMS"), "canary-of-an-upstream")
# What the home keeps for its owner (mode 0600): here secrets may be, and are.
KEPT = (
    "key",
    "valkey/valkey.conf",
    "valkey/valkey.password",
    "postgres/postgres.password",
    "postgres/finetuned.password",
)
# Programs that are told nothing, by a word of their argument list.
TOLD_NOTHING = (
    "worker.training",
    "worker/training/cell.py",
    "worker.generation",
    "postgres",
    "valkey-server",
)


def of(home: Path) -> dict[str, bytes]:
    """Every secret by its name: those given, and those that the service made."""
    found = {canary: canary.encode() for canary in CANARIES}
    for name in KEPT:
        if name != "valkey/valkey.conf":
            found[name] = (home / name).read_bytes().strip()
    found["key"] = found["key"].rsplit(b"_", 1)[0]  # without its checksum
    return found


def processes(root: int) -> dict[int, tuple[list[str], bytes]]:
    """Argument list and environment of a process and of all that it started, in cells or not."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    below = {root}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return {pid: told for pid in below if (told := _told(pid)) is not None}


def _told(pid: int) -> tuple[list[str], bytes] | None:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return [word.decode(errors="replace") for word in words], Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None


def leaks(home: Path, secrets: dict[str, bytes]) -> Iterator[str]:
    """Files of the home, logs and database among them, that hold one and should not."""
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.relative_to(home).as_posix() not in KEPT:
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            yield from (f"{name} in {path}" for name, secret in secrets.items() if secret in data)
