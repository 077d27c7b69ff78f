"""Which requests the demo answers: ASGI middleware in front of the page (https://asgi.readthedocs.io).

A page of another site can send requests to this machine through its visitor's browser. What it cannot do is to choose the
names in ``Host`` and ``Origin``: the first is checked by starlette's ``TrustedHostMiddleware`` for the names of
:func:`allowed_hosts`, the second by :class:`Gate`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llm_mer.cli.serving.uploads import bytes_held
from llm_mer.errors import UserError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
UPLOAD = "/gradio_api/upload"
FILE = "/gradio_api/file="
READ = re.compile(
    r"/|/(?:config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/(?:static|assets|svelte)/.+"
    r"|/gradio_api/(?:info|app_id|startup-events|theme\.css|upload_progress|queue/data|heartbeat/[^/]+|call/answer/[^/]+)/?"
)
"""What the page reads. Of Gradio's other routes some fetch addresses, write elsewhere or start programs."""
WRITTEN = re.compile(r"/gradio_api/(?:upload|queue/join|cancel|reset|call/answer)/?")
"""What the page sends to."""
SMALL_BODY = 1 << 20
"""Most bytes of a request that is no upload."""
FORM_BYTES = 1 << 16
"""What a form adds to the file it carries."""


def allowed_hosts(host: str, names: Iterable[str]) -> list[str]:
    """The names in ``Host`` that are answered: those of the loopback address, the address served on, and ``names``.

    Raises:
        UserError: an address that is none, a name with more than letters, digits, points and hyphens, or no name by which an
            address that stands for all addresses is called.
    """
    address = parse_address(host)
    found = [name.strip("[]") for name in names]
    for name in found:
        if not HOST_NAME.fullmatch(name) and not _is_address(name):
            raise UserError(f"--allowed_hosts {name!r}: write a name or address as in http://NAME:PORT, without port or *")
    if address.is_unspecified and not found:
        raise UserError(
            f"--host {host} serves on every address of this machine; say with --allowed_hosts by which names or addresses "
            "it is called, e.g. --allowed_hosts mymachine 192.168.1.5"
        )
    served = [] if address.is_unspecified else [str(address)]
    return list(dict.fromkeys([*LOOPBACK, *(_in_url(name).lower() for name in [*served, *found])]))


def parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """``--host`` as an address; no name is looked up. Raises :class:`UserError` for anything else."""
    try:
        return ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
    except ValueError:
        raise UserError(
            f"--host {host}: write an address of this machine, such as 127.0.0.1; its names go to --allowed_hosts"
        ) from None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _in_url(name: str) -> str:
    """An IPv6 address stands in brackets in ``Host``."""
    return f"[{name}]" if ":" in name else name


@dataclass
class Gate:
    """Refuses what the page itself never sends, with a status and a line.

    * 403: a request that a page of another origin makes.
    * 404: a route the page does not use, and a file that is not one of the uploads.
    * 411, 413: a body of unknown length, or one longer than is taken.
    * 507: an upload that ``folder`` has no room for.

    Args:
        app: what answers the rest. folder: where uploads lie.
        most_bytes: of one upload. most_held: of all that ``folder`` holds.
    """

    app: Application
    folder: Path
    most_bytes: int
    most_held: int
    arriving: int = 0
    """Bytes announced by uploads that are on their way."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self.refusal(scope["type"], scope.get("method", ""), scope["path"], headers)
        if refused is not None:
            await _reply(send, *refused)
            return
        if scope["path"].rstrip("/") != UPLOAD:
            await self.app(scope, receive, send)
            return
        length = int(headers["content-length"])
        if bytes_held(self.folder) + self.arriving + length > self.most_held:
            await _reply(send, 507, "there is no room for more uploads; old ones are removed by and by")
            return
        self.arriving += length
        try:
            await self.app(scope, receive, send)
        finally:
            self.arriving -= length

    def refusal(self, kind: str, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        """The status and the line of a request that is refused; None of one that is answered."""
        if kind != "http":
            return 404, "only HTTP is spoken here"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            return 403, "requests of other pages are not answered"
        if method in ("GET", "HEAD"):
            known = READ.fullmatch(path) or path.startswith(f"{FILE}{self.folder}/")
            return None if known else (404, "there is nothing here")
        if method != "POST" or not WRITTEN.fullmatch(path):
            return 404, "there is nothing here"
        if "transfer-encoding" in headers or not headers.get("content-length", "").isdecimal():
            return 411, "say the length of what is sent"
        most = self.most_bytes + FORM_BYTES if path.rstrip("/") == UPLOAD else SMALL_BODY
        if int(headers["content-length"]) > most:
            return 413, f"at most {most} bytes are taken"
        return None


async def _reply(send: Send, status: int, line: str) -> None:
    body = line.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
