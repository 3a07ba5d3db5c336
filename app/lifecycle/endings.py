"""Who hears of a job's end: a delivery for each endpoint that asked, in the transaction that ends the job."""

import secrets

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.tables import Job
from app.webhooks import event
from app.webhooks.rows import WebhookDelivery, WebhookEndpoint


def tell(session: Session, job_id: str, status: str) -> None:
    """To be called once a job has ended as `status`; `app.webhooks.courier` sends what is written here.

    Nothing in here waits for a lock or can be refused: an endpoint is never a reason for a job not to end.
    """
    kind = f"fine_tuning.job.{status}"
    listening = session.execute(
        select(WebhookEndpoint.id, Job.finished_at)
        .join(Job, Job.owner == WebhookEndpoint.owner)
        .where(
            Job.id == job_id,
            WebhookEndpoint.event_types.contains([kind]),
            WebhookEndpoint.disabled_at.is_(None),
            WebhookEndpoint.deleted_at.is_(None),
        )
    ).all()
    if not listening:
        return
    event_id = event.new_id()
    body = event.body(event_id, kind, listening[0].finished_at, job_id)
    session.execute(
        insert(WebhookDelivery),
        [
            {
                "id": f"whd_{secrets.token_hex(12)}",
                "endpoint_id": endpoint.id,
                "event_id": event_id,
                "event_type": kind,
                "body": body,
            }
            for endpoint in listening
        ],
    )
