"""Where a webhook may go: https to public addresses, and what FINETUNED_WEBHOOK_ALLOW adds.

A URL comes from whoever holds a key, and this process stands inside the network: without this check it
would fetch a cloud's credentials or talk to the database for them. The shape of a URL is checked when it is
given; what its name means is looked up at each delivery, all addresses are checked, and the connection is
made to one of these very addresses, so that a name that changes its meaning in between gains nothing.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx2

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

PORTS = (443, 8443)
LONGEST = 2048  # characters of a URL
NAME = re.compile(
    r"(?=.{1,253}\.?$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_-]{1,63}\.?", re.IGNORECASE
)
# Resolvers read 2130706433, 0x7f.1 and 0177.0.0.1 as addresses: what ends in a number is one, or nothing.
NUMBER = re.compile(r"(\d+|0x[0-9a-f]*)\.?", re.IGNORECASE)
# Global unicast. What lies outside of it (::/8 with its embedded IPv4, NAT64, site-local) is never public.
PUBLIC_V6 = IPv6Network("2000::/3")
# What `is_global` does not know in every Python that we run on, or counts as global though it may end in a
# private network: 6to4 and its relays carry an IPv4 address within.
NOT_PUBLIC = tuple(
    ip_network(network)
    for network in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")
)


class Forbidden(Exception):
    """A URL or an address where no webhook may go; the message says why and what to do."""


@dataclass(frozen=True)
class Target:
    """A URL whose shape is right. `host` is a name or an address, without brackets, in ASCII."""

    url: httpx2.URL
    host: str
    port: int

    @property
    def is_secure(self) -> bool:
        return self.url.scheme == "https"


def is_public(address: Address) -> bool:
    """Whether anybody's machine could be there. An IPv4 address inside an IPv6 one must be `bare` first."""
    if isinstance(address, IPv6Address) and address not in PUBLIC_V6:
        return False
    if any(address.version == network.version and address in network for network in NOT_PUBLIC):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def bare(address: Address) -> Address:
    """The IPv4 address that `::ffff:a.b.c.d` means: connecting goes there."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def parse(url: str, allow: Sequence[Network]) -> Target:
    """What a URL means. Raises Forbidden for one that no delivery could ever use."""
    if len(url) > LONGEST or not url.isascii() or not url.isprintable() or set(url) & set(" \\"):
        raise Forbidden(f"A URL has at most {LONGEST} printable ASCII characters, no space and no backslash.")
    try:
        read = httpx2.URL(url)
        host = read.raw_host.decode()
    except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
        raise Forbidden("This is not a URL.") from error
    if read.scheme != "https" and not (read.scheme == "http" and allow):
        raise Forbidden("Only https URLs can be webhooks.")
    if "@" in re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]:
        raise Forbidden("A webhook's URL may not carry a user name; check signatures instead.")
    if read.fragment or "#" in url:
        raise Forbidden("A webhook's URL may not carry a fragment (#…): no server ever sees it.")
    target = Target(read, host, read.port or (443 if read.scheme == "https" else 80))
    number = literal(host)
    if number is not None:
        permit(target, [number], allow)
    elif not NAME.fullmatch(host) or NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        raise Forbidden("Its host is neither a name nor an address in its usual spelling.")
    elif not allow and target.port not in PORTS:
        raise Forbidden(f"Only the ports {PORTS[0]} and {PORTS[1]} can be reached.")
    return target


def literal(host: str) -> Address | None:
    """The address that a host is, where it is one and no name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def permit(target: Target, addresses: Sequence[Address], allow: Sequence[Network]) -> list[Address]:
    """These addresses, ready to connect to. Raises Forbidden unless the URL may go to every one of them."""
    found = [bare(address) for address in addresses]
    for address in found:
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            raise Forbidden("Its host is at an address of one link only.")
        if any(address.version == network.version and address in network for network in allow):
            continue
        if not is_public(address):
            raise Forbidden("Its address is not public; FINETUNED_WEBHOOK_ALLOW can permit it.")
        if not target.is_secure or target.port not in PORTS:
            raise Forbidden("Public addresses are reached by https on the ports 443 and 8443 only.")
    return found


class Resolver:
    """Looks names up in threads of its own: a name server that keeps us waiting holds up no upload."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(32, "resolve")

    async def __call__(self, host: str, port: int) -> list[str]:
        """All addresses of a name. Raises OSError where there is none."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
