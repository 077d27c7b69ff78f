"""The demo as a program, asked over HTTP. Needs Gradio (the extra ``demo``), which `make setup` does not install."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_environment
from helpers.media_files import tone, write_wav
from helpers.network_recorder import install

pytest.importorskip("gradio")
pytestmark = pytest.mark.slow

MOST_BYTES = 1_000_000
SWITCHES = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "CI")


@dataclass
class Served:
    """A running demo, and the folders it may write to: one for uploads, and the one it was started in."""

    process: subprocess.Popen[str]
    port: int
    uploads: Path
    started_in: Path
    network_log: Path

    @property
    def folder(self) -> Path:
        (found,) = self.uploads.iterdir()
        return found

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def upload(self, name: str, content: bytes) -> tuple[int, str]:
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        form = "multipart/form-data; boundary=b"
        return self.request("POST", "/gradio_api/upload", head + content + b"\r\n--b--\r\n", Content_Type=form)

    def ask(self, video: Any = None, audio: Any = None, text: str = "", language: str = "auto") -> tuple[str, Any]:
        """``complete`` and what the page shows, or ``error`` and what it says."""
        body = json.dumps({"data": [video, audio, text, language]}).encode()
        status, reply = self.request("POST", "/gradio_api/call/answer", body, Content_Type="application/json")
        assert status == 200, reply
        status, events = self.request("GET", f"/gradio_api/call/answer/{json.loads(reply)['event_id']}")
        assert status == 200, events
        event, data = events.strip().rsplit("event: ", 1)[1].split("\ndata: ")
        return event, json.loads(data)


@pytest.fixture(scope="module")
def demo(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with running(trained, tmp_path_factory.mktemp("demo")) as served:
        yield served


class running:
    """A demo of a checkpoint on a free port, its look-ups and connections refused and written down."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self.uploads, self.started_in, self.log = folder / "uploads", folder / "here", folder / "network.log"
        self.uploads.mkdir()
        self.started_in.mkdir()
        site = install(folder / "site")
        environment = run_environment(
            PYTHONPATH=f"{site}{os.pathsep}{ROOT}", NETWORK_LOG=str(self.log), GRADIO_TEMP_DIR=str(self.uploads)
        )
        limits = ["--port", "0", "--max_upload_mb", str(MOST_BYTES // 1_000_000), "--max_seconds", "2"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llm_mer", "demo", "--checkpoint", str(checkpoint), *limits],
            cwd=self.started_in,
            env={name: value for name, value in environment.items() if name not in SWITCHES},
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Served:
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            if line.startswith("serving on http://127.0.0.1:"):
                port = int(line.partition(";")[0].rpartition(":")[2])
                return Served(self.process, port, self.uploads, self.started_in, self.log)
        raise AssertionError(said)

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def file_data(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.", "evil.example:7860"])
def test_another_host_is_refused(demo: Served, host: str) -> None:
    assert demo.request("GET", "/", Host=host)[0] == 400
    assert demo.request("POST", "/gradio_api/upload", b"x", Host=host)[0] == 400


def test_the_names_of_the_loopback_address_are_answered(demo: Served) -> None:
    for host in ("127.0.0.1", f"localhost:{demo.port}", f"LOCALHOST:{demo.port}", f"[::1]:{demo.port}"):
        assert demo.request("GET", "/", Host=host)[0] == 200, host


def test_a_request_of_another_page_is_refused(demo: Served) -> None:
    assert demo.request("GET", "/", Origin="http://evil.example")[0] == 403
    assert demo.request("GET", "/", Origin=f"http://127.0.0.1:{demo.port}")[0] == 200


def test_an_upload_beyond_the_limit_is_refused_and_leaves_nothing(demo: Served) -> None:
    before = sorted(demo.folder.rglob("*.bin"))
    for size in (MOST_BYTES + 1, 3 * MOST_BYTES):
        assert demo.upload("big.bin", b"x" * size)[0] == 413
    assert sorted(demo.folder.rglob("*.bin")) == before
    assert demo.upload("small.bin", b"x" * 1000)[0] == 200
    assert demo.request("POST", "/gradio_api/upload", None, Transfer_Encoding="chunked")[0] == 411


def test_every_task_of_the_checkpoint_is_answered_with_its_remarks(demo: Served) -> None:
    event, (emotion, about_emotion, score, distribution, about_score, diagnostics) = demo.ask(
        text="the train leaves at nine"
    )
    assert event == "complete"
    assert len(emotion["confidences"]) == 6
    assert sum(share["confidence"] for share in emotion["confidences"]) == pytest.approx(1, abs=1e-4)
    assert -3 <= score <= 3
    assert len(distribution["data"]) == 61
    assert sum(share for _, share in distribution["data"]) == pytest.approx(1, abs=1e-4)
    for remarks in (about_emotion, about_score):
        assert "computed in float32" in remarks
        assert "probability outside the admissible answers: " in remarks
    assert isinstance(diagnostics, dict)


def test_errors_are_lines_that_name_no_place_and_quote_no_markup(demo: Served, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "long.wav", tone(200, 3.0, 16_000))
    path = json.loads(demo.upload("long.wav", sound.read_bytes())[1])[0]
    text = json.loads(demo.upload("clip.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n")[1])[0]
    told = {
        "give a video, a sound or a text": demo.ask(),
        "longer than is taken here (at most 2 s)": demo.ask(audio=file_data(path), text="hello"),
        "the video: it is not a media file": demo.ask(video=file_data(text), text="hello"),
        "&lt;b&gt;": demo.ask(text="<b>가나다</b>"),
    }
    for expected, (event, data) in told.items():
        assert event == "error"
        assert expected in data["error"]
        for place in (str(demo.folder), str(Path.home()), str(ROOT), "Traceback", "<b>"):
            assert place not in data["error"]


@pytest.mark.parametrize("path", ["/etc/passwd", "http://example.invalid/clip.mp4", "../../etc/passwd"])
def test_nothing_but_an_upload_is_taken_for_a_clip(demo: Served, path: str) -> None:
    before = sorted(demo.folder.rglob("*"))
    event, data = demo.ask(video=file_data(path), text="hello")
    assert (event, data["error"]) == ("error", "only files that were uploaded are taken")
    assert sorted(demo.folder.rglob("*")) == before


def test_the_page_names_no_folder_of_the_machine(demo: Served, trained: Path) -> None:
    for route in ("/", "/config", "/gradio_api/info"):
        status, text = demo.request("GET", route)
        assert status == 200
        for place in (str(trained), str(demo.uploads), str(demo.started_in), str(Path.home()), str(ROOT)):
            assert place not in text, route


def test_sigterm_ends_it_and_takes_the_uploads_and_no_name_was_looked_up(trained: Path, tmp_path: Path) -> None:
    with running(trained, tmp_path) as demo:
        assert demo.folder.stat().st_mode & 0o777 == 0o700
        assert demo.upload("small.bin", b"x" * 1000)[0] == 200
        assert [path.name for path in demo.folder.rglob("*.bin")] == ["small.bin"]
        assert demo.ask(text="the train leaves at nine")[0] == "complete"
        assert demo.request("GET", "/gradio_api/file=http://example.invalid/x")[0] == 404
        demo.process.send_signal(signal.SIGTERM)
        assert demo.process.wait(180) == 128 + signal.SIGTERM
        assert list(demo.uploads.iterdir()) == []
        assert list(demo.started_in.iterdir()) == []
        lines = demo.network_log.read_text(encoding="utf-8").splitlines()
        assert {line.partition(" ")[0] for line in lines} == {"started"}
