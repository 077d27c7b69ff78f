"""A file of answers is continued by what made it or not at all, by one process at a time, and kept when a disk fills."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import options
from file_limit import file_size_limit
from lock_holder import held_by_another

from llm_mer.cli.infer import infer
from llm_mer.cli.main import main
from llm_mer.data.schema import Utterance
from llm_mer.data.sources.manifest import write_manifest
from llm_mer.errors import UserError
from llm_mer.inference.inputs import InferConfig
from llm_mer.inference.output_file import LineFile, StandardOutput
from llm_mer.inference.provenance import Provenance, input_digest


def texts(folder: Path, *said: str) -> Path:
    return write_manifest([Utterance(f"u{i}", text=text, language="en") for i, text in enumerate(said)], folder / "m.jsonl")


@pytest.fixture
def ask(trained: Path, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Answer a manifest of texts into one file, and return its rows."""

    def run(*said: str, **options: Any) -> list[dict[str, Any]]:
        given: dict[str, Any] = {"checkpoint": str(trained), "tasks": ["emotion"], "output": str(tmp_path / "out.jsonl")}
        infer(InferConfig(**{**given, "manifest": str(texts(tmp_path, *said)), **options}))
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]

    return run


# --- what made a row --------------------------------------------------------------------------------------------------


def test_a_row_holds_the_digest_of_its_input_and_the_file_beside_it_the_rest(
    ask: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    rows = ask("the book", "the table")
    given = [Utterance(f"u{i}", text=text, language="en") for i, text in enumerate(("the book", "the table"))]
    assert [row["input"] for row in rows] == [input_digest(utterance) for utterance in given]
    settings = json.loads((tmp_path / "out.jsonl.made_by.json").read_text())["settings"]
    assert len(settings["checkpoint"]) == 64
    assert settings["tasks"] == ["emotion"]
    assert not settings["generate"]
    assert not (tmp_path / ".out.jsonl.lock").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generate": True}, "holds answers made otherwise: generate was False, now True; name another --output, or delete"),
        ({"tasks": ["emotion", "sentiment"]}, r"tasks was \['emotion'\], now \['emotion', 'sentiment'\]"),
        ({"full": True, "answer_end": False}, "answer_end was True, now False; full was False, now True"),
    ],
)
def test_answers_of_other_options_are_not_continued(
    options: dict[str, Any], message: str, ask: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    ask("the book")
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(UserError, match=message):
        ask("the book", "the table", **options)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert len(ask("the book", "the table")) == 2


def test_answers_of_another_checkpoint_are_not_continued(
    trained: Path, ask: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    ask("the book")
    other = Path(shutil.copytree(trained, tmp_path / "other"))
    assert len(ask("the book", "the table", checkpoint=str(other))) == 2, "a copy is the same model"
    path = other / "llm_mer.json"
    description = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**description, "training": {}}), encoding="utf-8")
    for record in ("checksums.json", "complete.json"):
        (other / record).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"checkpoint was '?[0-9a-f]{12}'?, now '?[0-9a-f]{12}'?; name another --output"):
        ask("the book", "the table", checkpoint=str(other))


def test_answers_to_another_text_under_the_same_id_are_not_kept(
    ask: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    ask("the book", "the table")
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"has the answer to another input for id 'u1'.*name another --output, or delete"):
        ask("the book", "the train", "we meet on monday")
    assert (tmp_path / "out.jsonl").read_bytes() == before, "nothing is answered before all is compared"


def test_answers_that_nobody_knows_the_making_of_are_not_continued(
    ask: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    ask("the book")
    (tmp_path / "out.jsonl.made_by.json").unlink()
    with pytest.raises(UserError, match=r"no out\.jsonl\.made_by\.json beside it says what made them"):
        ask("the book", "the table")
    (tmp_path / "out.jsonl.made_by.json").write_text("[]")
    with pytest.raises(UserError, match=r"out\.jsonl\.made_by\.json: damaged"):
        ask("the book", "the table")


def test_every_part_of_an_utterance_enters_its_digest(tmp_path: Path) -> None:
    clip = tmp_path / "a.wav"
    clip.write_bytes(b"one")
    utterance = Utterance("a", text="the book", language="en", audio=str(clip))
    digest = input_digest(utterance)
    changes: list[dict[str, Any]] = [
        {"text": "the books"}, {"language": "zh"}, {"labels": {"emotion": "joy"}}, {"speaker": "A"}, {"turn": 1},
        {"dialogue_id": "d"}, {"tags": ("x",)}, {"audio": None}, {"vision": str(clip)},
    ]  # fmt: skip
    assert len({digest, *(input_digest(dataclasses.replace(utterance, **change)) for change in changes)}) == 1 + len(changes)
    moved = Path(shutil.copy2(clip, tmp_path.joinpath("elsewhere").mkdir() or tmp_path / "elsewhere" / "a.wav"))
    assert input_digest(dataclasses.replace(utterance, audio=str(moved))) == digest, "a data set may move"
    clip.write_bytes(b"other")
    assert input_digest(utterance) != digest


def test_a_line_of_a_stream_with_a_known_id_and_another_text_is_said_to_be_another(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = InferConfig(checkpoint=str(trained), stdin=True, output=str(tmp_path / "out.jsonl"), tasks=["emotion"])
    for text in ("the book", "the book", "the table"):
        caplog.clear()
        monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"text": text}) + "\n"))
        infer(config)
        assert ("line-1 is already answered" in caplog.text) == (text != "the book" or "answered" in caplog.text)
    assert "line-1 is already answered in" in caplog.text
    assert "from another input; give each line a unique id" in caplog.text


# --- one writer -------------------------------------------------------------------------------------------------------


def test_a_second_process_on_one_file_is_refused_with_the_name_of_the_first(
    trained: Path, ask: Callable[..., list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask("the book")
    before, _ = (tmp_path / "out.jsonl").read_bytes(), capsys.readouterr()
    given = {"checkpoint": trained, "manifest": texts(tmp_path, "the book", "the table"), "tasks": "emotion"}
    with held_by_another(tmp_path / "out.jsonl") as first:
        assert main(["infer", *options(**given, output=tmp_path / "out.jsonl")]) == 2
    error = capsys.readouterr().err
    assert f"is being written by process {first} on " in error
    assert len(error.strip().splitlines()) == 1, error
    assert (tmp_path / "out.jsonl").read_bytes() == before


# --- full disks -------------------------------------------------------------------------------------------------------


class FullDisk:
    """A raw file that takes so many bytes more."""

    def __init__(self, raw: Any, room: int) -> None:
        self.raw, self.room = raw, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.raw.write(data[: self.room])
        self.room -= taken
        return int(taken)


@pytest.mark.parametrize("room", [0, 3, 7, 9])
def test_what_fits_on_a_full_disk_is_whole_lines(room: int, tmp_path: Path) -> None:
    file = LineFile(tmp_path / "out")
    file.write("first\n")
    file.raw = FullDisk(file.raw, room)
    with pytest.raises(UserError, match="out: cannot be written: No space left on device; the answers up to here are kept"):
        file.write("two\nthree\nfour\n")
    assert (tmp_path / "out").read_text() == "first\n" + "two\n" * (room > 3)


def test_a_disk_that_fills_up_costs_one_line_and_no_answer(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, output = texts(tmp_path, *(f"we meet on monday {i}" for i in range(12))), tmp_path / "out.jsonl"
    given = {"checkpoint": trained, "manifest": manifest, "output": output, "batch_size": 2, "read_ahead": 1}
    with file_size_limit(4000):
        assert main(["infer", *options(**given)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line for line in errors if "cannot be written" in line] == errors[-1:]
    assert not any("Traceback" in line for line in errors)
    kept = output.read_bytes()
    assert 1000 < len(kept) <= 4000
    assert kept.endswith(b"\n")
    config = InferConfig(checkpoint=str(trained), manifest=str(manifest), output=str(output), batch_size=2, read_ahead=1)
    assert 0 < infer(config) < 12
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["id"], row["task"]) for row in rows] == [(f"u{i}", t) for i in range(12) for t in ("emotion", "sentiment")]


def test_a_standard_output_that_is_full_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        with pytest.raises(UserError, match="standard output: cannot be written: No space left on device"):
            StandardOutput().write("x" * 100_000)


def test_a_file_that_is_removed_while_it_is_written_is_an_error(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "out")
    file.write("first\n")
    (tmp_path / "out").unlink()
    with pytest.raises(UserError, match="out: was removed while it was being written"):
        file.close()


def test_a_note_of_the_making_that_cannot_be_written_is_one_line(
    ask: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Provenance, "claim", full)
    with pytest.raises(UserError, match=r"--output .*out\.jsonl: cannot be written: No space left on device"):
        ask("the book")
