"""``llm-mer demo``: what it refuses before it loads a checkpoint."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from llm_mer.cli.serving.demo import DemoConfig, check_config, listening, run, url
from llm_mer.cli.serving.page import check_gradio
from llm_mer.errors import UserError


def test_the_default_serves_this_machine_alone() -> None:
    assert check_config(DemoConfig(checkpoint="x")) == ["127.0.0.1", "localhost", "[::1]"]
    with listening(DemoConfig().host, 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": -1}, "--port -1"),
        ({"max_upload_mb": 0}, "--max_upload_mb 0"),
        ({"max_seconds": 0.0}, "--max_seconds 0"),
        ({"max_seconds": 601.0}, "at most 600"),
        ({"max_seconds": float("nan")}, "--max_seconds nan"),
        ({"host": "0.0.0.0"}, "--allowed_hosts"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_loaded(
    no_backbone: None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(DemoConfig(checkpoint="gone", **changes))


def test_a_port_in_use_is_one_line_before_anything_is_loaded(no_backbone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_mer.cli.serving.demo.check_gradio", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: Address already in use; choose another"):
            run(DemoConfig(checkpoint="gone", port=port))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_of_another_machine_is_one_line(host: str) -> None:
    with pytest.raises(UserError, match="choose another"), listening(host, 0):
        pass


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("fe80::1", "[fe80::1]")],
)
def test_the_address_that_is_printed_is_one_that_is_answered(host: str, shown: str) -> None:
    assert url(host, 80) == f"http://{shown}:80"
    assert shown in check_config(DemoConfig(host=host, allowed_hosts=["mymachine"]))


def test_a_missing_or_old_gradio_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata as metadata

    def missing(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(UserError, match=r"pip install 'llm-mer\[demo\]'"):
        check_gradio()
    monkeypatch.setattr(metadata, "version", lambda _: "6.4.0")
    with pytest.raises(UserError, match=r"Gradio 6\.31 or newer, and 6\.4\.0 is installed"):
        check_gradio()
    for good in ("6.31.0", "6.100.2", "7.0.0"):
        monkeypatch.setattr(metadata, "version", lambda _, good=good: good)
        check_gradio()
