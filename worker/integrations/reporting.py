"""An attempt's integrations, between its rows and its follower."""

import contextlib

from sqlalchemy.exc import SQLAlchemyError

from app.lifecycle.claims import Claim
from app.lifecycle.history import note
from app.tables import Job
from worker.integrations.follower import Follower
from worker.integrations.sinks import SINKS
from worker.order import Order
from worker.runtime import Runtime
from worker.training import events


def follow(runtime: Runtime, held: Claim, order: Order) -> Follower | None:
    """Begin to report; None where the job asked for nothing that is sent."""
    sent = [one for one in order.integrations if one["type"] in SINKS]
    if not sent:
        return None
    job = {
        "id": held.job_id,
        "name": order.model_name,
        "model": order.line["base_name"],
        "recipe": order.line["recipe"],
    }

    def tell(notice: events.Notice) -> None:
        with runtime.database.transaction() as session:
            note(session, held.job_id, notice.level, notice.code, notice.message, notice.data)

    folder = runtime.settings.home / "tmp" / f"integrations-{held.job_id}-e{held.epoch}"
    return Follower(sent, job, folder, tell)


def end(runtime: Runtime, held: Claim, follower: Follower, model: str | None) -> None:
    """Report how it ended, and the model that was published under this key."""
    status = "interrupted"
    with contextlib.suppress(SQLAlchemyError, OSError), runtime.database.transaction() as session:
        status = session.get_one(Job, held.job_id).status
    succeeded = status == "succeeded" and model is not None
    follower.end(status, runtime.store.hold_folder(model) if succeeded and model else None)
