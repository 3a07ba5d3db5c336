"""One trace from a job's POST to its model, read by a receiver that decodes what is sent; and logs that tell
which request a worker works for."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from structlog.testing import capture_logs

from app.auth import ensure_first_key
from app.database import WorkerDatabase
from app.folder import Folder
from app.settings import Settings
from app.tables import Job
from app.tracing import Tracing
from tests.app.conftest import Api, serving
from tests.worker.conftest import STAND_IN
from worker import tasks
from worker.launch import Trainer, WarmTrainers
from worker.runtime import Runtime

CLIENTS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CANARY = "canary7"


@contextmanager
def receiving() -> Iterator[tuple[str, list[Span]]]:
    """A receiver of OTLP over HTTP; its address, and the spans it was sent."""
    spans: list[Span] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            body = self.rfile.read(int(self.headers["content-length"]))
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    spans.extend(scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, database_url=database_url, redis_url=redis_url, min_free_bytes=0)


def test_the_post_and_what_the_worker_does_for_it_are_one_trace(settings: Settings) -> None:
    key = ensure_first_key(settings).read_text().strip()
    script = json.dumps({"text": json.dumps({"acts": [], "steps": 3, "note": CANARY})}).encode()
    with receiving() as (endpoint, spans):
        settings = settings.model_copy(update={"otlp_endpoint": endpoint})
        with serving(settings) as url:
            api = Api(url, key, key, settings)
            with api.client() as client:
                file = client.files.create(file=(f"{CANARY}.jsonl", script + b"\n"), purpose="fine-tune")
                raw = client.fine_tuning.jobs.with_raw_response.create(
                    model="tiny-gpt2",
                    training_file=file.id,
                    suffix=CANARY,
                    extra_headers={"traceparent": CLIENTS},
                )
                job_id, request_id = raw.parse().id, raw.headers["x-request-id"]
        runtime = Runtime(
            settings=settings,
            database=WorkerDatabase(settings),
            store=Folder(settings.storage_folder),
            trainers=WarmTrainers(lambda: Trainer(STAND_IN)),
            worker="worker",
        )
        try:
            with capture_logs() as told:
                tasks.train(runtime, job_id)
        finally:
            runtime.trainers.close()
            runtime.tracing.close()
        with runtime.database.transaction() as session:
            row = session.get_one(Job, job_id)
            assert (row.status, row.request_id) == ("succeeded", request_id)
        runtime.database.close()
        assert told
    by_name = {span.name: span for span in spans}
    assert set(by_name) == {"create_job", "queued", "prepare", "first_step", "train", "publish"}
    assert {span.trace_id.hex() for span in spans} == {CLIENTS.split("-")[1]}
    root = by_name.pop("create_job")
    assert root.parent_span_id.hex() == CLIENTS.split("-")[2], "the client's own trace goes on"
    assert {span.parent_span_id for span in by_name.values()} == {root.span_id}
    order = [by_name[name] for name in ("queued", "prepare", "first_step", "train", "publish")]
    for earlier, later in pairwise(order):
        assert earlier.end_time_unix_nano <= later.end_time_unix_nano
    for span in spans:
        facts = {fact.key: fact.value.string_value for fact in span.attributes}
        assert facts["job_id"] == job_id
        assert facts["request_id"] == request_id
        assert CANARY not in str(span)


def test_without_an_endpoint_nothing_that_sends_is_loaded_and_nothing_kept(settings: Settings) -> None:
    tracing = Tracing(settings, "api")
    with tracing.span("create_job", None):
        assert tracing.parent() is None
    with tracing.span("create_job", "no traceparent at all\x00"):
        assert tracing.parent() is None
    tracing.past("queued", None, 0.0)
    tracing.close()
    # The SDK itself may be loaded by OpenTelemetry's API, which other libraries use, where it is installed.
    code = "import app.main, sys; print(*[name for name in sys.modules if 'opentelemetry.exporter' in name])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == ""


def test_a_receiver_that_is_not_there_holds_nobody_up(settings: Settings) -> None:
    tracing = Tracing(settings.model_copy(update={"otlp_endpoint": "http://127.0.0.1:9"}), "api")
    with tracing.span("create_job", None, job_id="x"):
        assert (tracing.parent() or "").startswith("00-")
    tracing.close()


def test_a_workers_lines_name_the_job_and_its_request(settings: Settings) -> None:
    """As a process of its own writes them: one JSON object a line."""
    code = """
import structlog
from app.journal import configure_logs
configure_logs("info")
structlog.contextvars.bind_contextvars(job_id="ftjob-1", request_id="req_1")
structlog.get_logger().info("training", pid=1)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    line = json.loads(said.splitlines()[-1])
    assert (line["event"], line["job_id"], line["request_id"]) == ("training", "ftjob-1", "req_1")


def test_what_libraries_write_is_json_too_with_the_same_names() -> None:
    """As uvicorn's own command starts the API in a container; a traceback is many lines elsewhere."""
    code = """
import logging
import uvicorn
import structlog
from app.journal import configure_logs
uvicorn.Config("x:y")  # brings its own form
configure_logs("info")
structlog.contextvars.bind_contextvars(request_id="req_1")
logging.getLogger("uvicorn.error").info("Started %s", "it")
try:
    raise ValueError("one\\ntwo")
except ValueError:
    logging.getLogger("celery.app.trace").exception("broke")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    started, broke = map(json.loads, said.splitlines())
    assert (started["event"], started["logger"], started["level"]) == ("Started it", "uvicorn.error", "info")
    assert started["request_id"] == broke["request_id"] == "req_1"
    assert started["timestamp"]
    assert (broke["event"], broke["level"]) == ("broke", "error")
    assert broke["exception"].endswith("ValueError: one\ntwo")
