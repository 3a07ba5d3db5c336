"""Which jobs a list shows, and the small curve beside each."""

from collections.abc import Sequence
from typing import Literal

from fastapi import Request
from sqlalchemy import BigInteger, Integer, Select, String, column, func, or_, select, true, values
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import InvalidRequest
from app.tables import Job, Metric

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
Curve = list[tuple[int, float]]


def filtered(
    query: Select[Job], request: Request, statuses: Sequence[Status] | None, search: str | None
) -> Select[Job]:
    """`metadata[key]=value` selects by pairs, `metadata=null` those without any."""
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name == "metadata":
            if value != "null":
                raise InvalidRequest("metadata is `null`, or `metadata[key]=value`.", param="metadata")
            # Without any it is null, or, in rows of earlier releases, JSON's null.
            kind = func.coalesce(func.jsonb_typeof(Job.job_metadata), "null")
            query = query.where(kind == "null")
        elif name.startswith("metadata[") and name.endswith("]"):
            wanted[name[len("metadata[") : -1]] = value
    if wanted:
        query = query.where(Job.job_metadata.contains(wanted))
    if statuses:
        query = query.where(Job.status.in_(statuses))
    if search:
        named = (Job.id, Job.model, Job.suffix, Job.fine_tuned_model)
        query = query.where(or_(*(name.icontains(search, autoescape=True) for name in named)))
    return query


async def curves(session: AsyncSession, rows: Sequence[Job], points: int) -> dict[str, Curve]:
    """The training loss of each job at about `points` steps, (step, loss), spread over its whole run.

    As many look-ups in the primary key, so that a job of a million steps costs what a small one does; peaks
    between them are not seen.
    """
    ends = [(row.id, row.step) for row in rows if row.step]
    if not ends:
        return {}
    wanted = values(column("job_id", String), column("last", BigInteger), name="wanted").data(ends)
    place = func.generate_series(0, points - 1, type_=Integer).table_valued("n").render_derived(name="place")
    near = (
        select(Metric.step, Metric.loss)
        .where(
            Metric.job_id == wanted.c.job_id,
            Metric.step >= wanted.c.last * place.c.n // (points - 1),
            Metric.loss.is_not(None),
        )
        .order_by(Metric.step)
        .limit(1)
        .lateral("near")
    )
    found = await session.execute(
        select(wanted.c.job_id, near.c.step, near.c.loss)
        .select_from(wanted)
        .join(place, true())
        .join(near, true())
        .distinct()
        .order_by(wanted.c.job_id, near.c.step)
    )
    told: dict[str, Curve] = {}
    for job_id, step, loss in found:
        told.setdefault(job_id, []).append((step, loss))
    return told
