"""``llm-mer demo``: a page on this machine to try a checkpoint on clips (Gradio, extra ``demo``)."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_mer.checkpoints.precision import precision_option
from llm_mer.cli.serving.gate import Gate, allowed_hosts, parse_address
from llm_mer.cli.serving.page import build_page, check_gradio
from llm_mer.cli.serving.uploads import clean_up_on_signals, private_folder
from llm_mer.data.long_clips import window_overlap_option, windows_option
from llm_mer.errors import UserError
from llm_mer.features.media import MAX_SECONDS

logger = logging.getLogger(__name__)

KEEP_SECONDS = 3600.0
"""How long an upload is kept."""
UPLOADS_HELD = 10
"""The largest uploads that the folder has room for."""
QUEUE_SIZE = 8
CONNECTIONS = 64
"""Beyond it a request is answered with 503."""
GRACE_SECONDS = 2
"""For connections to end by themselves when the program is stopped."""


@dataclass
class DemoConfig:
    """Options of ``llm-mer demo``."""

    checkpoint: str = field(default="", metadata={"help": "folder written by finetune.py", "required": True})
    host: str = field(
        default="127.0.0.1", metadata={"help": "address to serve on; the default is reachable from this machine only"}
    )
    port: int = field(default=7860, metadata={"help": "port; 0 takes a free one"})
    allowed_hosts: list[str] = field(
        default_factory=list,
        metadata={"help": "names by which a browser calls this machine, beside the loopback address and --host"},
    )
    max_upload_mb: int = field(default=100, metadata={"help": "largest file that is taken, in MB"})
    max_seconds: float = field(default=120.0, metadata={"help": "longest clip that is taken"})
    windows: float | None = windows_option()
    window_overlap: float = window_overlap_option()
    backbone: str | None = field(default=None, metadata={"help": "use this backbone folder instead of the recorded one"})
    adapter: str | None = field(
        default=None, metadata={"help": "package.module:Class, where the checkpoint's adapter is a class of yours"}
    )
    dtype: str = precision_option()


def check_config(config: DemoConfig) -> list[str]:
    """The names in ``Host`` that are answered. Raises :class:`UserError` for options that are wrong by themselves."""
    if not 0 <= config.port <= 65535:
        raise UserError(f"--port {config.port}: a port is a number from 0 to 65535")
    if config.max_upload_mb < 1:
        raise UserError(f"--max_upload_mb {config.max_upload_mb}: it must be at least 1")
    if not 0 < config.max_seconds <= MAX_SECONDS:
        raise UserError(f"--max_seconds {config.max_seconds:g}: it must be above 0 and at most {MAX_SECONDS:g}")
    return allowed_hosts(config.host, config.allowed_hosts)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that takes connections. Raises :class:`UserError` for an address or port that cannot be had."""
    address = parse_address(host)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((str(address), port))
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: {error.strerror}; choose another --port or --host") from None
        yield listener


def url(host: str, port: int) -> str:
    """Where a browser of this machine finds the page; an address that stands for all is called by the loopback one."""
    address = parse_address(host)
    if address.is_unspecified:
        address = parse_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"


def application(page: Any, hosts: list[str], folder: Path, most_bytes: int) -> Any:
    """The page behind its checks, as an ASGI application."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    checks = [
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        Middleware(Gate, folder=folder, most_bytes=most_bytes, most_held=UPLOADS_HELD * most_bytes),
    ]
    return gr.mount_gradio_app(
        FastAPI(middleware=checks, docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        max_file_size=most_bytes,
        show_error=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
    )


def serve(app: Any, listener: socket.socket) -> None:
    """Answer requests until a signal comes."""
    import uvicorn

    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    listener.listen()
    logger.info("serving on %s; Ctrl-C ends it", url(*listener.getsockname()[:2]))
    uvicorn.Server(settings).run(sockets=[listener])


def run(config: DemoConfig) -> None:
    """Load the checkpoint and serve until interrupted.

    Raises:
        UserError: options that are wrong, an address that cannot be had, or no Gradio, before the checkpoint is loaded; a
            checkpoint that cannot be loaded.
    """
    hosts, most_bytes = check_config(config), config.max_upload_mb * 1_000_000
    check_gradio()
    with listening(config.host, config.port) as listener:
        from llm_mer.inference.pipeline import MerPipeline

        pipeline = MerPipeline.from_pretrained(
            config.checkpoint,
            backbone=config.backbone,
            adapter=config.adapter,
            dtype=config.dtype,
            windows=config.windows,
            window_overlap=config.window_overlap,
        )
        if not parse_address(config.host).is_loopback:
            logger.warning("others reach %s, and no password is asked for", config.host)
        try:
            with clean_up_on_signals(), private_folder(KEEP_SECONDS) as folder:
                page = build_page(pipeline, folder, config.max_seconds, QUEUE_SIZE)
                serve(application(page, hosts, folder, most_bytes), listener)
        except KeyboardInterrupt:  # how a server is ended
            logger.info("stopped")
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # an answer under way is waited for, and a second Ctrl-C ends it
