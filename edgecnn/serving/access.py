"""Who may ask: by token, by the name the server was called by, and by the page the request comes from."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from ipaddress import ip_address

from aiohttp import web

from edgecnn.errors import UsageError
from edgecnn.serving.limits import RefusedError


@dataclass(frozen=True)
class Access:
    """`token`: what requests must bear, or None; `loopback`: whether only names of this machine, and `hosts`, are answered to.

    A page on the internet can make its own name resolve to 127.0.0.1, and then the visitor's browser lets it read what
    a server there answers (DNS rebinding). The name it calls the server by is still its own.
    """

    token: str | None = None
    loopback: bool = True
    hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a token that no header can carry."""
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise UsageError("a token is one line of printable ASCII, and not empty")

    def check(self, request: web.Request, public: bool) -> None:
        """Let a request through, or not; `public` routes ask for no token.

        Raises:
            RefusedError: another name (403), another page's request (403), or no token or a wrong one (401).
        """
        host = request.headers.get("Host")
        if self.loopback and host is not None and not self._is_ours(host):
            raise RefusedError(403, "this server answers to the names of its own machine only; see --allow-host")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RefusedError(403, "requests from the pages of other sites are not answered")
        if self.token is not None and not public and not self._bears(request.headers.get("Authorization", "")):
            raise RefusedError(401, "this server asks for its token: `Authorization: Bearer TOKEN`")

    def _is_ours(self, host: str) -> bool:
        name = host_name(host)
        return is_loopback(name) or name in self.hosts

    def _bears(self, header: str) -> bool:
        scheme, _, given = header.partition(" ")
        wanted = (self.token or "").strip().encode()
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8", "replace"), wanted)


def host_name(host: str) -> str:
    """Take the name out of a Host header: without the port, brackets and a dot at its end."""
    name = host.strip().lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return name.removesuffix(".")


def is_loopback(name: str) -> bool:
    """Say whether a host's name or address is this machine's loopback, by itself and not by what it resolves to."""
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
