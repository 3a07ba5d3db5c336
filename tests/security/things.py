"""Things of an owner, one of each kind, to be looked for by others."""

from dataclasses import dataclass
from typing import Any

import httpx2

from app.database import WorkerDatabase
from app.settings import Settings
from app.tables import Checkpoint, Model, now
from app.webhooks.rows import WebhookDelivery

UNKNOWN = {
    "file_id": "file-000000000000000000000000",
    "job_id": "ftjob-000000000000000000000000",
    "model": "ft:tiny-gpt2:finetuned::00000000",
    "upload_id": "upload_000000000000000000000000",
    "part_id": "part_000000000000000000000000",
    "key_id": "00000000",
    "event_id": "ftevent-000000000000000000000000",
    "checkpoint_id": "ftckpt_000000000000000000000000",
    "checkpoint": "ft:tiny-gpt2:finetuned::00000000:ckpt-step-1",
    "saved_step": "ftjob-000000000000000000000000:1",
    "fine_tuned_model_checkpoint": "ft:tiny-gpt2:finetuned::00000000",
    "permission_id": "cp_000000000000000000000000",
    "webhook_endpoint_id": "we_000000000000000000000000",
    "delivery_id": "whd_000000000000000000000000",
}
ROW = b'{"text": "x"}\n'


@dataclass(frozen=True)
class Things:
    """Ids and names of what one owner has, under the names that parameters of paths have."""

    ids: dict[str, str]
    word: str  # stands in every label of theirs


def good(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def make_file(http: httpx2.Client, name: str = "x.jsonl") -> str:
    form: dict[str, Any] = {"data": {"purpose": "fine-tune"}, "files": {"file": (name, ROW)}}
    return str(good(http.post("/v1/files", **form))["id"])


def make_job(http: httpx2.Client, **more: Any) -> dict[str, Any]:
    body = {"model": "tiny-gpt2", "training_file": make_file(http), **more}
    return good(http.post("/v1/fine_tuning/jobs", json=body))


def make_upload(http: httpx2.Client, name: str = "x.jsonl") -> str:
    body = {"bytes": len(ROW), "filename": name, "mime_type": "text/plain", "purpose": "fine-tune"}
    return str(good(http.post("/v1/uploads", json=body))["id"])


def make_part(http: httpx2.Client, upload_id: str) -> str:
    return str(good(http.post(f"/v1/uploads/{upload_id}/parts", files={"data": ("upload", ROW)}))["id"])


def make_model(settings: Settings, owner: str, job_id: str, name: str) -> None:
    """A published model and a checkpoint, as rows and files: training one would take seconds."""
    database = WorkerDatabase(settings)
    manifest = {"files": {"config.json": {"sha256": "0" * 64, "bytes": 2}}}
    for key in (f"models/{job_id}", f"jobs/{job_id}/e1/checkpoints/1"):
        folder = settings.storage_folder / key
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "manifest.json").write_text('{"files": {"config.json": {"sha256": "0", "bytes": 2}}}')
    with database.transaction() as session:
        session.add(
            Model(
                id=f"model-{job_id}",
                owner=owner,
                name=name,
                base="tiny-gpt2",
                job_id=job_id,
                key=f"models/{job_id}",
                manifest=manifest,
                bytes=2,
            )
        )
        session.add(
            Checkpoint(
                id=f"ftckpt_{job_id}",
                job_id=job_id,
                step=1,
                epoch=1,
                key=f"jobs/{job_id}/e1/checkpoints/1",
                name=f"{name}:ckpt-step-1",
                manifest_sha256="0" * 64,
                bytes=2,
                metrics={},
            )
        )
    database.close()


def make_permission(http: httpx2.Client, model: str) -> str:
    url = f"/v1/fine_tuning/checkpoints/{model}/permissions"
    return str(good(http.post(url, json={"project_ids": ["somebody"]}))["first_id"])


def make_endpoint(http: httpx2.Client, name: str = "x", url: str = "https://hooks.example") -> str:
    body = {"name": name, "url": url, "event_types": ["fine_tuning.job.failed"]}
    return str(good(http.post("/v1/webhook_endpoints", json=body))["id"])


def make_delivery(settings: Settings, endpoint_id: str) -> str:
    """One that has been given up, as a row."""
    database = WorkerDatabase(settings)
    delivery_id = endpoint_id.replace("we_", "whd_")
    with database.transaction() as session:
        session.add(
            WebhookDelivery(
                id=delivery_id,
                endpoint_id=endpoint_id,
                event_id=delivery_id.replace("whd_", "evt_"),
                event_type="fine_tuning.job.failed",
                body="{}",
                status="failed",
                ended_at=now,
            )
        )
    database.close()
    return delivery_id


def make_things(http: httpx2.Client, settings: Settings, owner: str, word: str) -> Things:
    job = make_job(http, metadata={"word": word}, suffix=word)
    name = f"ft:tiny-gpt2:finetuned:{word}:{job['id'][-8:]}"
    make_model(settings, owner, job["id"], name)
    upload = make_upload(http, f"{word}.txt")
    endpoint = make_endpoint(http, word, f"https://{word}.example")
    job_url = f"/v1/fine_tuning/jobs/{job['id']}"
    ids = {
        "file_id": make_file(http, f"{word}.jsonl"),
        "job_id": job["id"],
        "model": name,
        "checkpoint": f"{name}:ckpt-step-1",
        "saved_step": f"{job['id']}:1",
        "upload_id": upload,
        "part_id": make_part(http, upload),
        "key_id": good(http.get("/v1/api_keys/me"))["id"],
        "event_id": good(http.get(f"{job_url}/events"))["data"][0]["id"],
        "checkpoint_id": good(http.get(f"{job_url}/checkpoints"))["data"][0]["id"],
        "fine_tuned_model_checkpoint": name,
        "permission_id": make_permission(http, name),
        "webhook_endpoint_id": endpoint,
        "delivery_id": make_delivery(settings, endpoint),
        "path": "config.json",
    }
    return Things(ids, word)
