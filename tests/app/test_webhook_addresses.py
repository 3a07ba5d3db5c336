"""Where webhooks may not go, tried with a canary: a listening socket that must never see a connection.

The ports that are allowed are changed to the canary's own, so that nothing but the check of the address
stands between it and the sender; and a test with that check off shows that the canary would sing.
"""

import asyncio
import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from app.journal import configure_logs
from app.webhooks import address
from app.webhooks.address import Forbidden, Network, bare, is_public, parse
from app.webhooks.post import Outcome, Post
from tests.app.receiver import receiving

LOOPBACK: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
METADATA = "169.254.169.254"
HEADERS = {"webhook-id": "evt_1"}
TIMEOUT = timedelta(seconds=20)


def words(text: str) -> list[str]:
    return text.split()


class Canary:
    """Listens on one port of 127.0.0.1 and ::1, and counts who came."""

    def __init__(self) -> None:
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = self._sockets[0].getsockname()[1]
        if socket.has_ipv6:
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for each in self._sockets:
            each.setblocking(False)

    def count(self) -> int:
        """Connections since the last look: the kernel completes them without our accepting."""
        seen = 0
        for each in self._sockets:
            while True:
                try:
                    each.accept()[0].close()
                except BlockingIOError:
                    break
                seen += 1
        return seen

    def close(self) -> None:
        for each in self._sockets:
            each.close()


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    canary = Canary()
    monkeypatch.setattr(address, "PORTS", (canary.port,))
    yield canary
    canary.close()


class Names:
    """A name server: gives the next answer of a list, the last one for ever, and counts the questions."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def send(url: str, *, allow: tuple[Network, ...] = (), names: Any = None) -> Outcome:
    post = Post(allow, TIMEOUT, names)
    try:
        return await post.send(url, HEADERS, b"{}")
    finally:
        post.close()


@pytest.mark.parametrize(
    "where",
    # One of several is enough.
    [
        *words("127.0.0.1 127.8.8.8 ::1 0.0.0.0 :: ::ffff:127.0.0.1 ::ffff:0.0.0.0"),
        "93.184.216.34 127.0.0.1",
        # And what is inside the network: a cloud's credentials, by either family.
        *words("169.254.169.254 ::ffff:169.254.169.254 ::ffff:10.0.0.1 fd00:ec2::254 fe80::1%lo"),
    ],
)
async def test_a_name_that_means_this_machine_is_never_connected_to(canary: Canary, where: str) -> None:
    outcome = await send(f"https://hook.example:{canary.port}/", names=Names(where.split()))
    assert (outcome.error or "").startswith("Not sent: Its "), outcome
    assert (outcome.status_code, canary.count()) == (None, 0)


@pytest.mark.parametrize("where", words("127.0.0.1 ::1 0.0.0.0 ::ffff:127.0.0.1"))
async def test_without_the_check_the_canary_would_see_it(
    canary: Canary, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "is_public", lambda _: True)
    sent = asyncio.create_task(send(f"https://hook.example:{canary.port}/", names=Names([where])))
    while not (seen := canary.count()) and not sent.done():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    sent.cancel()  # a canary does not answer
    assert seen > 0


HERE = words("""
localhost LOCALHOST. 127.0.0.1 127.0.0.1. [::1] [0:0:0:0:0:0:0:1] [::ffff:127.0.0.1] [::ffff:7f00:1] 0.0.0.0
[::] 2130706433 0x7f000001 0x7f.0.0.1 0x7f.1. 0177.0.0.1 017700000001 127.1 127.0.1 0 127.0.0.0x1
good@127.0.0.1 good:secret@127.0.0.1 127.0.0.1@good.example good.example@127.0.0.1 @127.0.0.1
good.example\\@127.0.0.1 127.0.0.1\\.good.example [::1%25lo] [::1%lo] %31%32%37.0.0.1 127.0.0.1%00.example
127。0。0。1 ①②⑦.⓪.⓪.① ⓛⓞⓒⓐⓛⓗⓞⓢⓣ
""")


@pytest.mark.parametrize("host", HERE)
async def test_no_spelling_of_this_machine_gets_past(canary: Canary, host: str) -> None:
    """With the real resolver, which knows them all."""
    outcome = await send(f"https://{host}:{canary.port}/hook")
    assert (outcome.delivered, outcome.status_code, canary.count()) == (False, None, 0)


USELESS = words("""
/ hook https:// https:///path https://:443/ ftp://a.example/ file:///etc/passwd gopher://a.example/
http://a.example/ HTTP://a.example https://a.example:22/ https://a.example:80/ https://a.example:99999/
https://a.example:x/ https://a.example:443:443/ https://a.example/#part https://a.example/# //a.example
https://me@a.example/ https://me:pw@a.example/ https://@a.example/ https://169.254.169.254/latest https://1/
https://10.0.0.1 https://[fd00::1]/ https://a..example/ https://-a.example/ javascript:alert(1)
https:a.example https://a_b!.example
""")
USELESS += [
    "",
    "https://a b/",
    "https://a\n.example/",
    f"https://{'a' * 64}.example/",
    f"https://a.example/{'x' * 2048}",
]


@pytest.mark.parametrize("url", USELESS)
def test_a_url_that_no_delivery_could_use_is_refused_when_it_is_given(url: str) -> None:
    with pytest.raises(Forbidden):
        parse(url, ())


ORDINARY = words("""
https://a.example https://a.example:443/x?y=z https://a-b.c_d.example:8443/%2F HTTPS://A.Example./
https://xn--bcher-kva.example/ https://93.184.216.34/ https://[2606:4700::1111]:8443/
""")


@pytest.mark.parametrize("url", ORDINARY)
def test_an_ordinary_url_is_taken(url: str) -> None:
    assert parse(url, ()).is_secure


INSIDE = words("""
0.0.0.0 10.0.0.1 100.64.0.1 127.0.0.1 169.254.169.254 172.16.0.1 192.0.0.8 192.0.2.1 192.88.99.1 192.168.1.1
198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 :: ::1 ::7f00:1
::ffff:10.0.0.1 fe80::1 fec0::1 fc00::1 fd00:ec2::254 ff02::1 ff0e::1 2001:db8::1 2002:a00:1:: 2001::1
64:ff9b::a9fe:a9fe 3fff::1 100::1 5f00::1
""")
OUTSIDE = words("93.184.216.34 1.1.1.1 172.32.0.1 2606:4700::1111 2a00:1450::1 ::ffff:1.1.1.1")


@pytest.mark.parametrize("where", INSIDE + OUTSIDE)
def test_what_is_public(where: str) -> None:
    assert is_public(bare(ip_address(where))) is (where in OUTSIDE)


async def test_a_name_that_changes_its_meaning_gains_nothing(canary: Canary) -> None:
    """Rebinding: public when the URL was given, this machine at the delivery; and within one delivery."""
    url = f"https://hook.example:{canary.port}/"
    parse(url, ())
    names = Names([METADATA], ["127.0.0.1"])
    for _ in range(3):
        assert "not public" in ((await send(url, names=names)).error or "")
    assert canary.count() == 0
    # Asked once, and connected to that very answer: a second answer never counts.
    once = Names(["127.0.0.9"], ["127.0.0.1"])
    outcome = await send(url, allow=(ip_network("127.0.0.9/32"),), names=once)
    assert (once.asked, canary.count(), outcome.status_code) == (1, 0, None)


async def test_a_redirect_is_not_followed_and_no_proxy_is_asked(
    canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
        monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{canary.port}")
    with receiving() as receiver:
        for status in (301, 302, 303, 307, 308):
            receiver.answers["/"].append((status, f"http://127.0.0.1:{canary.port}/latest/meta-data"))
            outcome = await send(receiver.url, allow=LOOPBACK)
            assert (outcome.status_code, outcome.delivered) == (status, False)
        assert len(receiver.received) == 5
    assert canary.count() == 0


async def test_http_goes_to_the_networks_that_were_allowed_and_no_further(canary: Canary) -> None:
    assert (
        await send(f"http://127.0.0.1:{canary.port}/")
    ).error == "Not sent: Only https URLs can be webhooks."
    refused = await send("http://hook.example/", allow=LOOPBACK, names=Names(["93.184.216.34"]))
    assert "by https" in (refused.error or "")
    mixed = await send("http://hook.example/", allow=LOOPBACK, names=Names(["127.0.0.1", "10.0.0.1"]))
    assert "not public" in (mixed.error or "")
    with receiving() as receiver:
        port = receiver.url.rpartition(":")[2]
        sent = await send(f"http://hook.example:{port}/x", allow=LOOPBACK, names=Names(["::ffff:127.0.0.1"]))
        assert (sent.status_code, sent.error) == (200, None)
        assert receiver.received[0].headers["host"] == f"hook.example:{port}"


async def test_the_log_does_not_tell_a_url_which_may_hold_a_token(caplog: pytest.LogCaptureFixture) -> None:
    configure_logs("info")
    with receiving() as receiver, caplog.at_level(logging.INFO):
        assert (await send(f"{receiver.url}/?token=c4n4ry", allow=LOOPBACK)).delivered
    assert "c4n4ry" not in caplog.text


async def test_another_address_is_tried_where_one_refuses(canary: Canary) -> None:
    with receiving() as receiver:
        port = receiver.url.rpartition(":")[2]
        names = Names(["127.0.0.2", "127.0.0.1"])
        assert (await send(f"http://two.example:{port}/", allow=LOOPBACK, names=names)).delivered
        assert len(receiver.received) == 1


@contextmanager
def serving_raw(answer: bytes, *, endless: bool = False) -> Iterator[tuple[int, list[int]]]:
    """A server of one connection that says these bytes; its port, and how many bytes it got rid of."""
    listener, said = socket.create_server(("127.0.0.1", 0)), [0]

    def talk() -> None:
        with listener.accept()[0] as connection:
            connection.recv(65536)
            try:
                said[0] += connection.send(answer)
                while endless:
                    said[0] += connection.send(b"x" * 65536)
                while connection.recv(65536):  # until the other side hangs up
                    pass
            except OSError:
                pass

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield listener.getsockname()[1], said
    finally:
        thread.join(20)
        listener.close()
        assert not thread.is_alive(), "the connection was kept"


async def test_an_endless_answer_is_cut_and_its_status_counts() -> None:
    with serving_raw(b"HTTP/1.1 200 OK\r\n\r\n", endless=True) as (port, said):
        assert (await send(f"http://127.0.0.1:{port}/", allow=LOOPBACK)).delivered
    assert said[0] < 16 * 1024 * 1024  # what the kernel's buffers swallow


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_no_answer_in_time_is_no_answer(answer: bytes) -> None:
    post = Post(LOOPBACK, timedelta(seconds=0.2))
    with serving_raw(answer) as (port, _):
        outcome = await post.send(f"http://127.0.0.1:{port}/", HEADERS, b"{}")
        post.close()
    assert (outcome.status_code, outcome.error) == (None, "No answer within 0.2 s.")


async def test_a_name_server_that_never_answers_takes_no_longer() -> None:
    async def silent(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    post = Post((), timedelta(seconds=0.1), silent)
    outcome = await post.send("https://hook.example/", HEADERS, b"{}")
    post.close()
    assert outcome.error == "No answer within 0.1 s."


@pytest.mark.parametrize("answer", [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000])
async def test_an_answer_that_is_none_is_an_error_in_words(answer: bytes) -> None:
    with serving_raw(answer) as (port, _):
        outcome = await send(f"http://127.0.0.1:{port}/", allow=LOOPBACK)
    assert outcome.status_code is None
    assert 0 < len(outcome.error or "") <= 300


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of hook.example that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=hook.example"
    named = f"-addext subjectAltName=DNS:hook.example -keyout {key} -out {certificate}"
    subprocess.run(["openssl", *made.split(), *named.split()], check=True, capture_output=True)
    return certificate, key


async def test_the_certificate_is_the_names_although_the_address_is_connected_to(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    asked: list[str | None] = []
    context.sni_callback = lambda _connection, name, _context: asked.append(name)
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    async with server:
        right = await send(f"https://hook.example:{port}/x", allow=LOOPBACK, names=Names(["127.0.0.1"]))
        wrong = await send(f"https://other.example:{port}/x", allow=LOOPBACK, names=Names(["127.0.0.1"]))
        untrusted = await send(f"https://127.0.0.1:{port}/x", allow=LOOPBACK)
    assert (right.status_code, right.error) == (204, None)
    assert asked[:2] == ["hook.example", "other.example"]
    assert len(heard) == 1
    assert f"host: hook.example:{port}".encode() in heard[0].lower()
    assert "certificate" in (wrong.error or "").lower()
    assert untrusted.status_code is None
