"""The wheels' servers, as we start them."""

import psycopg
import redis


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


def test_a_database_is_ready_for_the_programs(empty_database_url: str) -> None:
    with psycopg.connect(plain(empty_database_url)) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("finetuned",)
        connection.execute("CREATE TABLE rows (id int)")


def test_the_broker_never_drops_a_message(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("port") == {"port": "0"}
