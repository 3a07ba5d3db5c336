"""Delete means gone, whatever is killed in between; what is in use or may yet become known stays."""

import asyncio
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app import litter, purge
from app.database import Database, run
from app.dispatch import Connection, Dispatcher
from app.folder import Folder
from app.lifecycle import claims, wishes
from app.settings import Settings
from app.tables import Checkpoint, File, Model, now
from app.uploads.rows import Upload, UploadPart
from app.watch.traffic import Traffic

DAY = 25 * 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "storage")


@pytest.fixture
async def session(database_url: str, tmp_path: Path) -> Any:
    database = Database(Settings(home=tmp_path, database_url=database_url))
    async with database.transaction() as session:
        yield session
    await database.close()


def put(store: Folder, key: str, age: float = 0.0) -> Path:
    path = store.path(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    then = time.time() - age
    while path != store.root:
        os.utime(path, (then, then))
        path = path.parent
    return store.path(key)


def a_file(file_id: str, **named: Any) -> File:
    known = {"key": f"files/{file_id}", "bytes": 1, "sha256": "", "filename": "f", "purpose": "fine-tune"}
    return File(id=file_id, owner="me", format="jsonl", status="processed", rows=1, **known | named)


async def a_job(session: AsyncSession, job_id: str, file_id: str = "file-1", **named: Any) -> None:
    values = {
        "id": job_id,
        "owner": "me",
        "idempotency_key": None,
        "request_sha256": "",
        "model": "tiny-gpt2",
        "source": "builtin:tiny-gpt2",
        "training_file": file_id,
        "seed": 42,
        "method": {},
        "hyperparameters": {},
        "recipe": {},
        "max_attempts": 3,
        **named,
    }
    await run(session, wishes.create, values)


async def tidy(session: AsyncSession, store: Folder) -> list[str]:
    gone = []
    for part in litter.parts(store):
        gone += litter.remove(store, part, await run(session, litter.known, part))
    return gone


async def test_what_no_row_knows_goes_after_a_day(session: AsyncSession, store: Folder) -> None:
    session.add(a_file("file-1"))
    session.add(Model(id="m", owner="me", name="m", base="b", key="models/job-e1", manifest={}, bytes=1))
    await session.flush()
    for key in ("files/file-1", "models/job-e1/config.json", "cache/file-1/tokens.bin"):
        put(store, key, DAY)
    litter_keys = ["files/file-2", "files/.file-3-ab", "models/job-e2", "cache/file-1+file-2", "jobs/ftjob-x"]
    for key in litter_keys:
        put(store, key if key.startswith("files") else f"{key}/inner", DAY)
    young = [put(store, key) for key in ("files/file-4", "models/job-e3/inner", "jobs/ftjob-y/e1/inner")]
    assert sorted(await tidy(session, store)) == sorted(litter_keys)
    assert all(path.exists() for path in young)
    assert store.path("files/file-1").exists()
    assert store.path("models/job-e1/config.json").exists()
    assert store.path("cache/file-1/tokens.bin").exists()


async def test_parts_go_with_their_upload_and_not_before(session: AsyncSession, store: Folder) -> None:
    ends = {"late": timedelta(seconds=-1), "pending": timedelta(minutes=1)}
    for name, life in ends.items():
        named = {"filename": "f", "mime_type": "a/b", "purpose": "fine-tune", "status": "pending"}
        key = f"uploads/{name}"
        session.add(Upload(id=name, owner="me", key=key, bytes=1, expires_at=now + life, **named))
        await session.flush()
        session.add(UploadPart(id=f"part-{name}", upload_id=name, bytes=1, sha256=""))
        put(store, f"{key}/part-{name}", DAY)
    put(store, "uploads/unknown/part", DAY)
    assert await tidy(session, store) == ["uploads/unknown"]
    await purge.expire_uploads(session)
    (doomed,) = await purge.doomed(session)
    assert doomed.row_id == "late"
    purge.remove(store, doomed)
    # Killed here, the next round finds it again and nothing to remove.
    assert await purge.doomed(session) == [doomed]
    purge.remove(store, doomed)
    await purge.forget(session, doomed)
    assert await purge.doomed(session) == []
    assert not store.path("uploads/late").exists()
    assert store.path("uploads/pending/part-pending").exists()
    assert list(await session.scalars(select(UploadPart.id))) == ["part-pending"]


async def test_what_a_fenced_off_attempt_left_goes_soon_and_checkpoints_with_a_row_stay(
    session: AsyncSession, store: Folder
) -> None:
    session.add(a_file("file-1"))
    await session.flush()
    await a_job(session, "ftjob-1")
    for _ in range(2):  # epochs 1 and 3; the second still runs
        claim = await run(session, claims.claim, "ftjob-1", "w", timedelta(0))
        assert claim is not None
        if claim.epoch == 1:
            await run(session, claims.reap, timedelta(0))
    row = {"job_id": "ftjob-1", "manifest_sha256": "", "bytes": 1, "metrics": {}}
    kept = "jobs/ftjob-1/e1/checkpoints/step-5"
    session.add(Checkpoint(id="c1", step=5, epoch=1, key=kept, name="c1", **row))
    # Saved again under the new epoch: what lay under the old one is litter.
    session.add(
        Checkpoint(id="c2", step=10, epoch=3, key="jobs/ftjob-1/e3/checkpoints/step-10", name="c2", **row)
    )
    await session.flush()
    old = ["e1/checkpoints/step-10", "e1/checkpoints/.saving-step-15", "e1/model"]
    for key in [*(f"jobs/ftjob-1/{key}" for key in old), kept, "jobs/ftjob-1/e3/checkpoints/step-20"]:
        put(store, f"{key}/inner", 700)
    assert sorted(await tidy(session, store)) == sorted(f"jobs/ftjob-1/{key}" for key in old)
    assert store.path(kept).exists()
    assert store.path("jobs/ftjob-1/e3/checkpoints/step-20").exists(), "its row may be on the way"
    held = claims.Claim("ftjob-1", 3, 2, "w")
    await run(session, claims.release, held, "drained")
    put(store, "jobs/ftjob-1/e3/checkpoints/step-10/inner", 700)
    (part,) = [part for part in litter.parts(store) if part.kind == "jobs"]
    looked_at = await run(session, litter.known, part)
    assert await tidy(session, store) == ["jobs/ftjob-1/e3/checkpoints/step-20"]
    # Claimed anew since a look, whose removal waited behind a large folder's for as long.
    put(store, "jobs/ftjob-1/e4/checkpoints/step-20/inner", 700)
    assert litter.remove(store, part, looked_at) == []


async def test_a_checkpoint_saved_again_while_its_bytes_are_removed_keeps_its_key(
    session: AsyncSession, store: Folder
) -> None:
    session.add(a_file("file-1"))
    await session.flush()
    await a_job(session, "ftjob-1")
    row = Checkpoint(
        id="c", job_id="ftjob-1", step=5, epoch=1, key="jobs/ftjob-1/e1/checkpoints/step-5", name="c",
        manifest_sha256="", bytes=1, metrics={}, deleted_at=now,
    )  # fmt: skip
    session.add(row)
    await session.flush()
    (found,) = await purge.doomed(session)
    row.key, row.deleted_at = "jobs/ftjob-1/e2/checkpoints/step-5", None
    await session.flush()
    await purge.forget(session, found)
    await session.refresh(row)
    assert row.key == "jobs/ftjob-1/e2/checkpoints/step-5"


async def test_what_a_disk_refuses_keeps_nothing_else_from_going(session: AsyncSession) -> None:
    refused = {f"file-{n}" for n in range(purge.BATCH + 20)}
    session.add_all([a_file(name, deleted_at=now) for name in sorted(refused)])
    await session.flush()
    session.add(a_file("file-last", deleted_at=now))
    await session.flush()
    # 1 in 6 a round that it is left out: never so often in a row, save in its old place behind all others.
    rounds = [await purge.doomed(session) for _ in range(20)]
    assert any(doomed.row_id == "file-last" for found in rounds for doomed in found)


async def test_what_a_trainer_planted_keeps_nothing_of_others(
    session: AsyncSession, store: Folder, tmp_path: Path
) -> None:
    precious = put(Folder(tmp_path), "precious/inner", DAY)
    session.add(a_file("file-1"))
    await session.flush()
    kept = "checkpoints/step-5"
    for job_id in ("ftjob-1", "ftjob-2", "ftjob-3"):
        await a_job(session, job_id)
        claim = await run(session, claims.claim, job_id, "w", timedelta(minutes=1))
        assert claim is not None
        await run(session, claims.release, claim, "drained")
        row = {"key": f"jobs/{job_id}/e1/{kept}", "manifest_sha256": "", "bytes": 1, "metrics": {}}
        session.add(Checkpoint(id=job_id, job_id=job_id, step=5, epoch=1, name=job_id, **row))
        for name in (kept, "checkpoints/step-9"):
            put(store, f"jobs/{job_id}/e1/{name}/inner", 700)
    await session.flush()
    long = "z" * 255  # has no room for what is put before it
    put(store, f"jobs/ftjob-1/e1/{long}", 700)
    for planted in (store.path("jobs/ftjob-2/e1/link"), store.path("jobs/ftjob-2/e1/checkpoints/link")):
        planted.symlink_to(precious.parent)
        os.utime(planted, (0, 0), follow_symlinks=False)
    gone = await tidy(session, store)
    assert set(gone) == {
        *(f"jobs/ftjob-{number}/e1/checkpoints/step-9" for number in (2, 3)),
        "jobs/ftjob-2/e1/link",
        "jobs/ftjob-2/e1/checkpoints/link",
    }
    assert precious.exists()
    assert all(store.path(f"jobs/ftjob-{number}/e1/{kept}/inner").exists() for number in (1, 2, 3))


async def test_a_checkpoint_behind_a_planted_link_keeps_no_model_from_going(
    database_url: str, redis_url: str, store: Folder, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, database_url=database_url, redis_url=redis_url)
    database = Database(settings)
    async with database.transaction() as session:
        session.add(a_file("file-1"))
        await session.flush()
        await a_job(session, "ftjob-1")
        row = {"job_id": "ftjob-1", "manifest_sha256": "", "bytes": 1, "metrics": {}, "deleted_at": now}
        key = "jobs/ftjob-1/e1/checkpoints/step-5"
        session.add(Checkpoint(id="c1", step=5, epoch=1, key=key, name="c1", **row))
        model = {"key": "models/m-e1", "manifest": {}, "bytes": 1, "deleted_at": now}
        session.add(Model(id="m", owner="me", name="m", base="b", **model))
    precious = put(Folder(tmp_path), "precious/step-5")
    model_path = put(store, "models/m-e1/inner")
    store.path("jobs/ftjob-1/e1").mkdir(parents=True)
    store.path("jobs/ftjob-1/e1/checkpoints").symlink_to(precious.parent)
    dispatcher = Dispatcher(settings, database, store, Traffic())
    await dispatcher._purge()
    assert not model_path.exists()
    assert precious.exists()
    await dispatcher.close()
    await database.close()


async def test_a_deletion_killed_half_way_is_finished_by_the_next(
    store: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app import folder

    put(store, "models/a/one")
    put(store, "models/a/two")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_remove", lambda _: (_ for _ in ()).throw(OSError(5, "killed here")))
        with pytest.raises(OSError, match="killed"):
            store.delete("models/a")
    assert not store.path("models/a").exists()
    store.delete("models/a")
    assert list((store.root / "models").iterdir()) == []


async def test_a_file_that_expires_stays_while_a_job_is_to_read_it(
    session: AsyncSession, store: Folder
) -> None:
    past = now - timedelta(hours=1)
    session.add_all([a_file("file-1", expires_at=past), a_file("file-2", expires_at=past)])
    await session.flush()
    await a_job(session, "ftjob-1")
    await purge.expire_files(session)
    assert [found.row_id for found in await purge.doomed(session)] == ["file-2"]
    await run(session, wishes.cancel, "ftjob-1", "me")
    await purge.expire_files(session)
    assert {found.row_id for found in await purge.doomed(session)} == {"file-1", "file-2"}


async def test_a_file_of_which_a_job_is_made_in_its_last_moment_stays(
    database_url: str, tmp_path: Path
) -> None:
    """Its maker holds the row until the job is there; whoever waited for it would not see the job."""
    database = Database(Settings(home=tmp_path, database_url=database_url))
    async with database.transaction() as session:
        session.add(a_file("file-1", expires_at=now))
    async with database.transaction() as sweeper:
        async with database.transaction() as maker:
            await maker.execute(select(File.id).with_for_update(read=True))
            sweep = asyncio.create_task(purge.expire_files(sweeper))
            await asyncio.sleep(0.3)
            await a_job(maker, "ftjob-1")
        await sweep
    async with database.transaction() as session:
        assert await purge.doomed(session) == []
    await database.close()


async def test_what_was_encoded_of_a_file_goes_with_it(store: Folder) -> None:
    for key in ("files/file-a", "cache/file-a/x", "cache/file-a+file-b/x", "cache/file-b+file-a/x"):
        put(store, key)
    other = put(store, "cache/file-b/x")
    purge.remove(store, purge.Doomed(File, "file-a", "files/file-a"))
    assert [path.name for path in sorted((store.root / "cache").iterdir())] == ["file-b"]
    assert other.exists()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    at = [1000.0]
    monkeypatch.setattr("app.dispatch.time.monotonic", lambda: at[0])
    return at  # type: ignore[return-value]


def test_silence_proves_nobody_dead_until_the_connection_has_held_for_a_lease(clock: list[float]) -> None:
    from datetime import UTC, datetime

    connection = Connection(timedelta(seconds=60))
    there = datetime(2026, 1, 1, tzinfo=UTC)

    def look(here: float, elsewhere: float) -> float:
        nonlocal there
        clock[0] += here
        there += timedelta(seconds=elsewhere)
        return connection.held(there).total_seconds()

    assert [look(0, 0), look(30, 30), look(50, 50)] == [0, 30, 80]
    connection.broke()
    assert [look(1, 1), look(1, 1)] == [0, 1], "an error"
    assert [look(61, 61), look(10, 10)] == [0, 10], "the database was frozen, or we were"
    assert [look(1, 3600), look(10, 10)] == [0, 10], "the machine slept: our clock stood still"
    assert [look(1, -3600), look(10, 10)] == [0, 10], "the database's clock was set back"
