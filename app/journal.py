"""What the processes write to their logs: one JSON object a line on a pipe, readable lines on a terminal."""

import logging
import sys

import structlog

from app.apikey import without_keys


def _redact(
    _: structlog.typing.WrappedLogger, __: str, line: str | bytes | structlog.typing.EventDict
) -> structlog.typing.ProcessorReturnValue:
    """Last of all: no key gets into a log, whoever put it into a message or a traceback."""
    return without_keys(str(line))


def configure_logs(level: str) -> None:
    """Route structlog and the standard library's loggers to stderr."""
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    if sys.stderr.isatty():
        renderer = structlog.dev.ConsoleRenderer()
    told: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*told, renderer, _redact],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter
    handler.setFormatter(
        formatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *told],
            processors=[formatter.remove_processors_meta, renderer, _redact],
        )
    )
    logging.basicConfig(level=number, handlers=[handler])
    # Started from the command line, as in the containers, uvicorn has brought a form of its own.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # It tells each URL it asks, and a webhook's may carry its receiver's token.
    logging.getLogger("httpx2").setLevel(max(number, logging.WARNING))
