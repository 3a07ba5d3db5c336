"""Download tickets: one path, once, for a minute, and never longer than the key that asked is good."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import psycopg
import pytest

from app import tickets
from app.apikey import without_keys
from tests.app.conftest import Api, serving
from tests.app.test_keys import make, sql
from tests.security.things import good, make_file, make_job, make_model

__all__ = ["sql"]
TICKETS = "/v1/download_tickets"


def ask(http: httpx2.Client, path: str) -> str:
    made = good(http.post(TICKETS, json={"path": path}))
    assert made["object"] == "download_ticket"
    return str(made["url"])


@pytest.fixture(scope="module")
def model(api: Api) -> str:
    with api.http() as http:
        job_id = make_job(http)["id"]
    name = f"ft:tiny-gpt2:finetuned::{job_id[-8:]}"
    make_model(api.settings, api.settings.organization, job_id, name)
    return name


def anybody(api: Api) -> httpx2.Client:
    """A browser that follows a link."""
    return httpx2.Client(base_url=api.url, timeout=30)


def test_a_ticket_opens_its_path_once(api: Api, http: httpx2.Client, model: str) -> None:
    file_id = make_file(http)
    for path in (
        f"/v1/files/{file_id}/content",
        f"/v1/models/{model}/download",
        f"/v1/models/{model}:ckpt-step-1/download",
        f"/v1/models/{model}/files/config.json",
        f"/v1/models/{model.replace(':', '%3A')}/files/config.json",
    ):
        url = ask(http, path)
        with anybody(api) as browser:
            first = browser.get(url)
            assert first.status_code == 200, (path, first.text)
            assert first.headers["cache-control"] == "no-store"
            again = browser.get(url)
        assert again.status_code == 401
        error = again.json()["error"]
        assert error["code"] == "invalid_ticket"
        assert "/v1/download_tickets" in error["message"]


def test_a_download_goes_on_with_a_new_ticket_and_a_range(api: Api, http: httpx2.Client) -> None:
    path = f"/v1/files/{make_file(http)}/content"
    whole = http.get(path).content
    url = ask(http, path)
    with anybody(api) as browser:
        assert browser.get(url, headers={"range": "bytes=0-3"}).content == whole[:4]
        # Whoever finds the link in a history finds nothing, ranges neither.
        assert browser.get(url, headers={"range": "bytes=4-"}).status_code == 401
        assert browser.get(ask(http, path), headers={"range": "bytes=4-"}).content == whole[4:]


def test_a_ticket_is_for_nothing_else(api: Api, http: httpx2.Client, model: str) -> None:
    mine, other = make_file(http), make_file(http)
    ticket = ask(http, f"/v1/files/{mine}/content").partition("?")[2]
    with anybody(api) as browser:
        for method, path in (
            ("GET", f"/v1/files/{other}/content"),
            ("GET", f"/v1/models/{model}/download"),
            ("GET", f"/v1/files/{mine}"),
            ("GET", "/v1/files"),
            ("HEAD", f"/v1/files/{mine}/content"),
            ("DELETE", f"/v1/files/{mine}"),
            ("POST", f"/v1/files/{mine}/content"),
        ):
            assert browser.request(method, f"{path}?{ticket}").status_code == 401, (method, path)
        for wrong in (ticket[:-1], ticket + "x", "ticket=", "ticket=%00", "ticket=" + "ä" * 9):
            assert browser.get(f"/v1/files/{mine}/content?{wrong}").status_code == 401, wrong
        # None of that used it up.
        assert browser.get(f"/v1/files/{mine}/content?{ticket}").status_code == 200


def test_of_many_at_once_one_is_let_in_whichever_process_they_ask(api: Api, http: httpx2.Client) -> None:
    url = ask(http, f"/v1/files/{make_file(http)}/content")

    def follow(base: str) -> int:
        return httpx2.get(base + url, timeout=30).status_code

    with serving(api.settings) as second, ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(follow, [api.url, second] * 4)) == [200] + [401] * 7


def test_it_ends_with_its_minute_and_with_its_key(
    api: Api, http: httpx2.Client, sql: psycopg.Connection
) -> None:
    path = f"/v1/files/{make_file(http)}/content"
    late = ask(http, path)
    sql.execute("UPDATE download_tickets SET expires_at = expires_at - interval '61 seconds'")
    key = make(http, name="spare")
    with api.http(key["value"]) as spare:
        orphan = ask(spare, path)
    assert sql.execute("SELECT count(*) FROM download_tickets").fetchone() == (1,), (
        "the late one is cleared away"
    )
    good(http.delete(f"/v1/api_keys/{key['id']}"))
    with anybody(api) as browser:
        assert browser.get(late).status_code == 401
        assert browser.get(orphan).status_code == 401


def test_it_needs_the_scope_of_the_download_and_may_no_more(
    api: Api, http: httpx2.Client, model: str
) -> None:
    file_id = make_file(http)
    key = make(http, name="files alone", scopes=["files:read"])
    with api.http(key["value"]) as files, anybody(api) as browser:
        refused = files.post(TICKETS, json={"path": f"/v1/models/{model}/download"})
        assert refused.status_code == 403
        assert "models:read" in refused.json()["error"]["message"]
        url = ask(files, f"/v1/files/{file_id}/content")
        # The key may do less by the time the ticket is used: so may the ticket.
        good(http.post(f"/v1/api_keys/{key['id']}", json={"scopes": ["generate"]}))
        assert browser.get(url).status_code == 403


def test_anothers_things_are_unknown_with_a_ticket_too(api: Api, http: httpx2.Client, model: str) -> None:
    with api.http(api.stranger_key) as stranger, anybody(api) as browser:
        for path in (f"/v1/files/{make_file(http)}/content", f"/v1/models/{model}/download"):
            assert browser.get(ask(stranger, path)).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files",
        "/v1/files/file-1",
        "/v1/api_keys/x/download",
        "/v1/files/a/b/content",
        "/v1/files/%00/content",
        "/v1/files/%ff/content",
        "/v1/files/a/content?x=1",
        "//other.example/v1/files/a/content",
        "https://other.example/v1/files/a/content",
        "/v1/files/a%0d%0ab/content",
        "/healthz",
        "",
        7,
    ],
)
def test_only_downloads_get_one(http: httpx2.Client, path: Any) -> None:
    answer = http.post(TICKETS, json={"path": path})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "path"


def test_a_ticket_counts_as_a_request_of_its_key(api: Api, http: httpx2.Client) -> None:
    path = f"/v1/files/{make_file(http)}/content"
    key = make(http, name="slow", limits={"requests_per_minute": 1})
    with api.http(key["value"]) as slow, anybody(api) as browser:
        url = ask(slow, path)
        assert browser.get(url).status_code == 429


def test_no_secret_of_a_ticket_is_kept_or_logged(
    api: Api, http: httpx2.Client, sql: psycopg.Connection
) -> None:
    url = ask(http, f"/v1/files/{make_file(http)}/content")
    secret = url.partition("ticket=")[2]
    kept = sql.execute("SELECT to_jsonb(t)::text FROM download_tickets t").fetchall()
    assert kept
    assert secret not in str(kept)
    assert without_keys(f"GET {url} 200") == f"GET {url.partition('ftd_')[0]}ftd_… 200"
    scope: dict[str, Any] = {"query_string": f"a=1&ticket={secret}&b=2".encode()}
    assert tickets.take_out(scope) == secret
    assert scope["query_string"] == b"a=1&b=2", "a server's log of requests, ours has none, reads it after us"
