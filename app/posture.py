"""What a service must not be started with: doors open to the world, a broker that loses messages.

Asked once at the start of API and worker. A broker or database that is away is nobody's fault here; that is
waited for elsewhere.
"""

import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import redis
import structlog

from app.database import database_url
from app.settings import Settings

log = structlog.get_logger()
# The first release of each line without the flaws by which any client could run code (CVE-2025-49844 and its
# siblings, in the server's Lua); lines that are not here never got it, newer ones have it.
SOUND = {
    "redis": {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
    "valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
}
ENCRYPTED = ("require", "verify-ca", "verify-full")
SECONDS = 5.0
ABOVE_POLICIES = "SELECT rolname FROM pg_roles WHERE rolname = current_user AND (rolsuper OR rolbypassrls)"


class Unsafe(Exception):
    """The service is not started like this; says what to change."""


def check(settings: Settings) -> None:
    """Raises Unsafe; what is only unwise is logged."""
    wrong = [
        *_as_root(settings),
        *_database(settings),
        *_broker_address(settings),
        *_broker(settings),
        *_in_the_clear(settings),
        *_generators(settings),
    ]
    if wrong:
        raise Unsafe(" ".join(wrong))


def look_at_role(settings: Settings) -> None:
    """Warns of a role for which row-level security does not hold: the first line is left alone."""
    url = database_url(settings).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(url, connect_timeout=int(SECONDS)) as connection:
            above = connection.execute(ABOVE_POLICIES).fetchone()
    except psycopg.Error as error:
        log.warning("database_not_asked", error=type(error).__name__)
        return
    if above is not None:
        log.warning(
            "database_role_above_policies",
            role=above[0],
            advice="give DATABASE_URL a role that is no superuser and has no BYPASSRLS",
        )


def _as_root(settings: Settings) -> Iterator[str]:
    if settings.refuse_root and os.geteuid() == 0:
        yield "It is not run as root (FINETUNED_REFUSE_ROOT): give the container another user."


def _database(settings: Settings) -> Iterator[str]:
    parts = urlsplit(settings.database_url.get_secret_value() if settings.database_url else "")
    options = parse_qs(parts.query)
    # libpq takes hosts from there too, several of them.
    given = [
        host for name in ("host", "hostaddr") for value in options.get(name, []) for host in value.split(",")
    ]
    if not any(_is_public(host) for host in (parts.hostname, *given) if host and not host.startswith("/")):
        return
    if not parts.password and "password" not in options:
        yield "DATABASE_URL leads to a public address without a password."
    if options.get("sslmode", [""])[-1] not in ENCRYPTED:
        yield "DATABASE_URL leads to a public address without TLS: add ?sslmode=verify-full."


def _broker_address(settings: Settings) -> Iterator[str]:
    parts = urlsplit(settings.redis_url.get_secret_value() if settings.redis_url else "")
    if not parts.hostname or parts.scheme == "unix":
        return
    if _is_public(parts.hostname):
        if not parts.password:
            yield "REDIS_URL leads to a public address without a password."
        if parts.scheme != "rediss":
            yield "REDIS_URL leads to a public address without TLS: use rediss://."
    elif not parts.password and not _is_loopback(parts.hostname):
        log.warning("broker_without_password", host=parts.hostname, advice="keep its port from all others")


def _in_the_clear(settings: Settings) -> Iterator[str]:
    """Files, models, prompts and other servers' keys travel to these."""
    urls = {
        "FINETUNED_STORE_ENDPOINT": settings.store_endpoint,
        "FINETUNED_STORE_PUBLIC_ENDPOINT": settings.store_public_endpoint,
        **{f"FINETUNED_UPSTREAMS: {model!r}": upstream.url for model, upstream in settings.upstreams.items()},
    }
    for name, url in urls.items():
        parts = urlsplit(url or "")
        if parts.scheme == "http" and _is_public(parts.hostname):
            yield f"{name} leads to a public address without TLS: use https://."


def _generators(settings: Settings) -> Iterator[str]:
    for url in settings.generator_urls:
        parts = urlsplit(url)
        if parts.scheme == "http" and _is_public(parts.hostname):
            yield "GENERATOR_URL leads to a public address, and a generator asks for no key: keep it inside."
            return


def _addresses(host: str | None) -> list[Any]:
    try:
        found = socket.getaddrinfo(host, None) if host else []
    except OSError:
        return []
    return [ipaddress.ip_address(str(address[4][0]).partition("%")[0]) for address in found]


def _is_public(host: str | None) -> bool:
    return any(address.is_global for address in _addresses(host))


def _is_loopback(host: str) -> bool:
    found = _addresses(host)
    return bool(found) and all(address.is_loopback for address in found)


def _broker(settings: Settings) -> Iterator[str]:
    if settings.redis_url is None:
        return
    url = settings.redis_url.get_secret_value()
    try:
        with redis.Redis.from_url(url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS) as client:
            information: dict[str, Any] = client.info("server") | client.info("memory")
    except (redis.RedisError, OSError) as error:
        log.warning("broker_not_asked", error=type(error).__name__)
        return
    yield from complaints(information)


def complaints(information: dict[str, Any]) -> Iterator[str]:
    """About a broker, by what its INFO says."""
    policy = str(information.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        yield (
            f"The broker's maxmemory-policy is {policy}: when it is full it would throw messages away without"
            " a word. Set it to noeviction."
        )
    kind = "valkey" if "valkey_version" in information else "redis"
    version = str(information.get(f"{kind}_version", ""))
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        return
    major, minor, patch = map(int, found.groups())
    lines = SOUND[kind]
    if (major, minor) > max(lines) or patch >= lines.get((major, minor), patch + 1):
        return
    good = ", ".join(f"{line[0]}.{line[1]}.{least}" for line, least in lines.items())
    yield f"The broker is {kind} {version}, in which any client can run code; take {good} or newer."
