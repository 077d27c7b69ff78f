"""Which requests the demo answers, by their names, routes and lengths."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llm_mer.cli.serving.gate import FORM_BYTES, LOOPBACK, SMALL_BODY, Gate, allowed_hosts
from llm_mer.errors import UserError

UPLOAD, JOIN = "/gradio_api/upload", "/gradio_api/queue/join"


async def answer_ok(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(answer_ok, tmp_path, most_bytes=1000, most_held=5000 + FORM_BYTES)


def status(gate: Gate, path: str, method: str = "GET", kind: str = "http", **headers: str) -> int:
    """The status a request is answered with; ``content_length`` stands for ``Content-Length``."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": method, "path": path, "headers": [(b"host", b"127.0.0.1:7860"), *named]}
    asyncio.run(gate(scope, send, send))  # type: ignore[arg-type]
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("host", "names", "beyond"),
    [
        ("127.0.0.1", [], []),
        ("localhost", [], []),
        ("::1", [], []),
        ("192.168.1.5", ["MyMachine.local"], ["192.168.1.5", "mymachine.local"]),
        ("[fe80::1]", [], ["[fe80::1]"]),
        ("0.0.0.0", ["10.0.0.7", "fe80::2"], ["10.0.0.7", "[fe80::2]"]),
    ],
)
def test_the_loopback_names_the_address_and_what_was_named_are_answered(
    host: str, names: list[str], beyond: list[str]
) -> None:
    assert allowed_hosts(host, names) == [*LOOPBACK, *beyond]


@pytest.mark.parametrize("name", ["*", "*.example.com", "a:80", "http://a", "a/b", "", "a b", "-a", "a."])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--allowed_hosts"):
        allowed_hosts("127.0.0.1", [name])


@pytest.mark.parametrize("host", ["evil.example", "", "127.0.0.1:80", "*"])
def test_an_address_that_is_none_is_refused_and_no_name_is_looked_up(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("a name was looked up"))
    with pytest.raises(UserError, match="an address of this machine"):
        allowed_hosts(host, [])


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_every_address_needs_a_name(host: str) -> None:
    with pytest.raises(UserError, match="say with --allowed_hosts"):
        allowed_hosts(host, [])


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:3000", "http://127.0.0.1", "file://"])
def test_a_page_of_another_origin_is_not_answered(gate: Gate, origin: str) -> None:
    assert status(gate, "/", origin=origin) == 403
    assert status(gate, UPLOAD, "POST", origin=origin, content_length="10") == 403


def test_the_page_itself_is_answered(gate: Gate) -> None:
    own = "http://127.0.0.1:7860"
    for path in ("/", "/config", "/theme.css", "/assets/index-1.js", "/gradio_api/queue/data", "/gradio_api/heartbeat/a1"):
        assert status(gate, path, origin=own) == 200, path
    assert status(gate, f"/gradio_api/file={gate.folder}/a/clip.mp4") == 200
    assert status(gate, JOIN, "POST", origin=own, content_length="10") == 200
    assert status(gate, UPLOAD, "POST", origin=own, content_length=str(1000 + FORM_BYTES)) == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file=http://example.invalid/x"),
        ("GET", "/gradio_api/proxy=http://example.invalid/x"),
        ("GET", "/gradio_api/stream/a/b/c/playlist-file"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/vibe-code"),
        ("GET", "/docs"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/run/answer"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/"),
        ("PUT", UPLOAD),
        ("DELETE", "/"),
        ("OPTIONS", "/"),
    ],
)
def test_what_the_page_never_asks_for_is_not_there(gate: Gate, method: str, path: str) -> None:
    assert status(gate, path, method, content_length="10") == 404


def test_a_web_socket_is_not_opened(gate: Gate) -> None:
    assert status(gate, "/gradio_api/queue/data", kind="websocket") == 404


def test_a_body_has_a_length_and_a_bound(gate: Gate) -> None:
    assert status(gate, UPLOAD, "POST") == 411
    assert status(gate, UPLOAD, "POST", content_length="-1") == 411
    assert status(gate, UPLOAD, "POST", content_length="10", transfer_encoding="chunked") == 411
    assert status(gate, UPLOAD, "POST", content_length=str(1001 + FORM_BYTES)) == 413
    assert status(gate, JOIN, "POST", content_length=str(SMALL_BODY)) == 200
    assert status(gate, JOIN, "POST", content_length=str(SMALL_BODY + 1)) == 413


def test_uploads_stop_when_the_folder_is_full(gate: Gate) -> None:
    (gate.folder / "a").write_bytes(b"x" * (4500 + FORM_BYTES))
    assert status(gate, UPLOAD, "POST", content_length="500") == 200
    assert status(gate, UPLOAD, "POST", content_length="501") == 507
    assert status(gate, JOIN, "POST", content_length="501") == 200


def test_uploads_on_their_way_count(gate: Gate) -> None:
    (gate.folder / "a").write_bytes(b"x" * (4500 + FORM_BYTES))
    inner: list[int] = []

    async def meanwhile(scope: Any, receive: Any, send: Any) -> None:
        second = Gate(answer_ok, gate.folder, gate.most_bytes, gate.most_held, gate.arriving)
        refused: list[Any] = []

        async def note(message: Any) -> None:
            refused.append(message)

        await second(scope, receive, note)
        inner.append(refused[0]["status"])
        await answer_ok(scope, receive, send)

    gate.app = meanwhile
    assert status(gate, UPLOAD, "POST", content_length="300") == 200
    assert inner == [507]
    assert gate.arriving == 0
