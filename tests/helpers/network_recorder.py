"""Makes every name look-up and every connection to another machine fail, and writes it down, in a process and its children.

A folder with this file's :func:`install` in a ``sitecustomize.py`` goes to the front of PYTHONPATH.
"""

from __future__ import annotations

from pathlib import Path

SITE = """
import os
import socket


def _record(kind, target):
    with open(os.environ["NETWORK_LOG"], "a", encoding="utf-8") as log:
        log.write(f"{kind} {target!r}\\n")


def _refuse_name(kind):
    def refuse(host, *arguments, **options):
        _record(kind, host)
        raise socket.gaierror(socket.EAI_AGAIN, "names are not looked up here")

    return refuse


class _Socket(socket.socket):
    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _record("connect", address)
            raise ConnectionRefusedError(f"no connection to {address}")
        return super().connect(address)

    def connect_ex(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _record("connect_ex", address)
            return 111
        return super().connect_ex(address)

    def sendto(self, data, *rest):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _record("sendto", rest[-1])
        return super().sendto(data, *rest)


socket.socket = _Socket
for _name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr"):
    setattr(socket, _name, _refuse_name(_name))
_record("started", os.getpid())
"""


def install(folder: Path) -> Path:
    """Write ``sitecustomize.py`` into a new folder, which is returned."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    return folder
