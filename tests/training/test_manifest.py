import json
import os
from pathlib import Path

import pytest

from worker.training import manifest
from worker.training.manifest import Damaged, checkpoints, commit, prune, seal, verify


def sealed(folder: Path, step: int) -> Path:
    temporary = folder / f".saving-step-{step}"
    (temporary / "adapter").mkdir(parents=True)
    (temporary / "a.bin").write_bytes(os.urandom(100))
    (temporary / "adapter" / "b.bin").write_bytes(b"b")
    seal(temporary, {"step": step})
    final = folder / f"step-{step}"
    commit(temporary, final)
    return final


def test_a_manifest_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    folder = sealed(tmp_path, 1)
    said = json.loads((folder / "manifest.json").read_text())
    assert sorted(said["files"]) == ["a.bin", "adapter/b.bin"]
    assert said["files"]["adapter/b.bin"]["bytes"] == 1
    assert said["step"] == 1
    assert len(verify(folder)) == 64


def test_files_are_durable_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, rename = manifest.sync, Path.rename

    def synced(path: Path) -> None:
        done.append(f"sync {path.name}")
        sync(path)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name}")
        return rename(path, target)

    monkeypatch.setattr(manifest, "sync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    sealed(tmp_path, 1)
    at = done.index("rename .saving-step-1")
    assert done[:at] == [
        "sync a.bin", "sync b.bin", "sync manifest.json", "sync .saving-step-1", "sync adapter"
    ]  # fmt: skip
    assert done[at + 1 :] == [f"sync {tmp_path.name}"]


def test_a_symbolic_link_or_a_path_outside_is_damage(tmp_path: Path) -> None:
    folder = sealed(tmp_path, 1)
    content = (folder / "a.bin").read_bytes()
    (tmp_path / "elsewhere").write_bytes(content)
    (folder / "a.bin").unlink()
    (folder / "a.bin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Damaged, match=r"a\.bin"):
        verify(folder)
    other = sealed(tmp_path, 2)
    text = (other / "manifest.json").read_text().replace("a.bin", "../elsewhere")
    (other / "manifest.json").write_text(text)
    with pytest.raises(Damaged, match="outside the folder"):
        verify(other)


def test_pruning_keeps_the_newest_good_ones_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 10, 3, 4):
        sealed(tmp_path, step)
    assert prune(tmp_path, keep=2, best=1) == [3, 2]
    assert [step for step, _ in checkpoints(tmp_path)] == [1, 4, 10]
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_damaged_checkpoint_does_not_count_as_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        sealed(tmp_path, step)
    (tmp_path / "step-3" / "a.bin").write_bytes(b"short")
    prune(tmp_path, keep=1)
    assert [step for step, _ in checkpoints(tmp_path)] == [2, 3]
    (tmp_path / "step-2" / "a.bin").write_bytes(b"short")
    prune(tmp_path, keep=1)
    assert [step for step, _ in checkpoints(tmp_path)] == [2, 3]


def test_unfinished_folders_are_no_checkpoints_and_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".saving-step-9").mkdir()
    (tmp_path / ".removing-step-8").mkdir()
    sealed(tmp_path, 1)
    assert [step for step, _ in checkpoints(tmp_path)] == [1]
    manifest.sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1"]


def test_a_new_save_of_the_same_step_replaces_the_old_one(tmp_path: Path) -> None:
    first = verify(sealed(tmp_path, 1))
    assert verify(sealed(tmp_path, 1)) != first
