"""A service whose doors stand open is not started (S10, S13); one whose broker is away is."""

from typing import Any

import pytest
import redis
from pydantic import ValidationError

from app import posture
from app.posture import Unsafe
from app.settings import Settings

GOOD = {"valkey_version": "9.1.2", "redis_version": "7.2.4", "maxmemory_policy": "noeviction"}


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("redis://8.8.8.8:6379/0", "without a password"),
        ("redis://:secret@8.8.8.8:6379/0", "without TLS"),
        ("redis://:secret@[2001:4860:4860::8888]:6379/0", "without TLS"),
        ("rediss://:secret@8.8.8.8:6379/0", None),
        ("redis://10.0.0.1:6379/0", None),
        ("redis://127.0.0.1:1/0", None),
        ("unix:///nowhere", None),
    ],
)
def test_a_broker_that_all_the_world_can_reach_has_a_password_and_tls(
    url: str, word: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posture, "_broker", lambda _: ())  # nobody is asked over the internet
    _expect(Settings(redis_url=url), word)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("postgresql://a@8.8.8.8/b?sslmode=require", "without a password"),
        ("postgresql://a:secret@8.8.8.8/b", "without TLS"),
        ("postgresql://a:secret@8.8.8.8/b?sslmode=prefer", "without TLS"),
        ("postgresql://a:secret@8.8.8.8/b?sslmode=verify-full", None),
        ("postgresql://a:secret@192.168.1.2/b", None),
        ("postgresql://a:secret@/b?host=192.168.1.2,8.8.8.8", "without TLS"),
        ("postgresql://a@db/b?hostaddr=8.8.8.8&sslmode=require", "without a password"),
        ("postgresql://a@/b?host=8.8.8.8&sslmode=require&password=secret", None),
        ("postgresql+psycopg://a:secret@/b?host=/run/postgresql", None),
    ],
)
def test_a_database_that_all_the_world_can_reach_has_a_password_and_tls(url: str, word: str | None) -> None:
    _expect(Settings(database_url=url), word)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"generator_url": "http://10.0.0.1:8100"}, None),
        ({"generator_url": "unix:/run/g"}, None),
        ({"generator_url": "http://10.0.0.1:8100,http://8.8.8.8:8100"}, "asks for no key"),
        ({"generator_url": "http://[2001:4860:4860::8888]:8100"}, "asks for no key"),
        ({"store_endpoint": "http://8.8.8.8:9000"}, "FINETUNED_STORE_ENDPOINT"),
        ({"store_endpoint": "https://8.8.8.8"}, None),
        ({"store_public_endpoint": "http://8.8.8.8"}, "FINETUNED_STORE_PUBLIC_ENDPOINT"),
        ({"store_endpoint": "http://127.0.0.1:9000"}, None),
        ({"upstreams": {"m": {"url": "http://8.8.8.8/v1", "key": "secret"}}}, "FINETUNED_UPSTREAMS: 'm'"),
        ({"upstreams": {"m": {"url": "http://10.1.1.1/v1", "key": "secret"}}}, None),
        ({"upstreams": {"m": "https://8.8.8.8/v1"}}, None),
    ],
)
def test_nothing_of_ours_travels_through_the_world_in_the_clear(
    given: dict[str, Any], word: str | None
) -> None:
    _expect(Settings(**given), word)


@pytest.mark.parametrize(
    "given",
    [
        {"upstreams": {"m": "http://me:secret@10.0.0.1/v1"}},
        {"store_endpoint": "http://me:secret@10.0.0.1"},
        {"store_public_endpoint": "https://me:secret@a.example"},
    ],
)
def test_an_address_that_gets_into_logs_holds_no_password(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(**given)


def _expect(settings: Settings, word: str | None) -> None:
    if word is None:
        posture.check(settings)
        return
    with pytest.raises(Unsafe, match=word) as refused:
        posture.check(settings)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({}, None),
        ({"maxmemory_policy": "allkeys-lru"}, "allkeys-lru"),
        ({"maxmemory_policy": "volatile-ttl"}, "volatile-ttl"),
        ({"valkey_version": "8.1.3"}, "valkey 8.1.3"),
        ({"valkey_version": "8.1.4"}, None),
        ({"valkey_version": "7.2.10"}, "7.2.11"),
        ({"valkey_version": "10.0.0"}, None),
    ],
)
def test_a_broker_that_loses_messages_or_runs_code_is_refused(said: dict[str, Any], word: str | None) -> None:
    found = " ".join(posture.complaints(GOOD | said))
    assert (word in found) if word else not found


@pytest.mark.parametrize(
    ("version", "good"),
    [("7.0.15", False), ("7.2.11", True), ("7.4.5", False), ("8.2.2", True), ("9.0.0", True)],
)
def test_redis_has_its_own_versions(version: str, good: bool) -> None:
    said = {"redis_version": version, "maxmemory_policy": "noeviction"}
    assert (not list(posture.complaints(said))) is good


def test_a_real_broker_is_asked(empty_redis_url: str) -> None:
    settings = Settings(redis_url=empty_redis_url)
    posture.check(settings)
    with redis.Redis.from_url(empty_redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            with pytest.raises(Unsafe, match="noeviction"):
                posture.check(settings)
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_root_is_refused_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    posture.check(Settings())
    with pytest.raises(Unsafe, match="root"):
        posture.check(Settings(refuse_root=True))
