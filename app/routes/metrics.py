"""Figures for Prometheus."""

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from fastapi import APIRouter, Request, Response
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder

from app.access import needs
from app.database import run
from app.dependencies import EverybodysSession, OpenStore
from app.dispatch import Dispatcher
from app.watch.figures import Figures
from app.watch.traffic import Traffic

router = APIRouter(tags=["health"], dependencies=[needs("metrics")])


def _process(dispatcher: Dispatcher, broker: bool, folder: Path) -> Iterable[Family]:
    """What this process knows of itself and of the disk it writes to."""
    yield InfoMetricFamily("finetuned", "The release that answers", {"version": version("finetuned")})
    loops = GaugeMetricFamily(
        "finetuned_dispatcher_loop_age_seconds",
        "Since when a loop of this process has not got through; tidy rests 10 minutes, the others 1 s",
        labels=["loop"],
    )
    for name, finished in dispatcher.rounds.items():
        loops.add_metric([name], time.monotonic() - finished)
    yield loops
    yield GaugeMetricFamily(
        "finetuned_broker_up", "Whether the broker answers within two seconds", float(broker)
    )
    disk = shutil.disk_usage(folder if folder.exists() else folder.parent)  # until something is stored
    yield GaugeMetricFamily("finetuned_disk_free_bytes", "Free space where files and models lie", disk.free)
    yield GaugeMetricFamily("finetuned_disk_size_bytes", "Size of that disk", disk.total)


class _Scrape:
    """A collector of what is there already."""

    def __init__(self, traffic: Traffic, families: Sequence[Family]) -> None:
        self._traffic, self._families = traffic, families

    def collect(self) -> Iterator[Family]:
        yield from self._families
        yield from self._traffic.registry.collect()


@router.get("/metrics", response_class=Response)
async def read_metrics(request: Request, session: EverybodysSession, store: OpenStore) -> Response:
    """Figures for Prometheus, in its text format or OpenMetrics; docs/operations.md says what they mean.

    Of jobs, workers, webhooks and storage every API process tells the same, out of the database; of requests,
    generations and its own loops each tells its own. Asks for a key with the scope `metrics:read`.
    """
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    figures: Figures = request.app.state.figures
    known = await run(session, figures.read)
    dispatcher: Dispatcher = request.app.state.dispatcher
    own = _process(dispatcher, await dispatcher.ping_broker(), store.root)
    body = encode(_Scrape(request.app.state.traffic, [*known, *own]))
    return Response(body, media_type=None, headers={"content-type": content_type})
