"""``infer.py`` on several processes: the file of one process, wherever and however often it was stopped."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import make_utterances, options, torchrun

from llm_mer.cli.infer import infer
from llm_mer.data.sources.manifest import write_manifest
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.inference.inputs import InferConfig, inputs
from llm_mer.inference.output_file import PartFiles, finished_ids
from llm_mer.inference.pipeline import MerPipeline


def lines(path: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Texts of two languages and many lengths, with a line that is broken, a clip that is not there and a long text."""
    found = [dataclasses.replace(u, audio_features=None, vision_features=None) for u in make_utterances("test", 37)]
    found = [dataclasses.replace(u, text=" ".join([u.text or ""] * (1 + i % 7))) for i, u in enumerate(found)]
    found[5] = dataclasses.replace(found[5], audio="nowhere.wav")
    found[20] = dataclasses.replace(found[20], text="many pages " * 2000)
    path = write_manifest(found, tmp_path / "m.jsonl")
    entries = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*entries[:11], "broken", *entries[11:]]) + "\n", encoding="utf-8")
    return path


def launched(count: int, **given: Any) -> subprocess.CompletedProcess[str]:
    return torchrun(count, "infer.py", *options(**given))


@pytest.mark.slow
def test_two_processes_write_the_file_of_one_to_the_last_digit_and_finish_what_was_begun(
    trained: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"checkpoint": str(trained), "manifest": str(manifest), "batch_size": 2, "read_ahead": 2}
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    infer(InferConfig(**given, output=str(one)))
    expected = lines(one)
    assert len({entry["id"] for entry in expected}) == 38
    assert sum("error" in entry for entry in expected) == 3

    # A run by this one process that stops in its third group, in the middle of a line.
    answer, groups = MerPipeline.answer, []

    def interrupted(self: MerPipeline, *arguments: Any) -> Any:
        groups.append(1)
        if len(groups) == 3:
            raise KeyboardInterrupt
        return answer(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MerPipeline, "answer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            infer(InferConfig(**given, output=str(two)))
    whole = two.read_bytes()
    begun = whole.splitlines(keepends=True)
    assert 4 < len(begun) < len(expected)
    two.write_bytes(whole[: -len(begun[-1]) // 2])

    result = launched(2, **given, output=two)
    assert result.returncode == 0, result.stderr[-3000:]
    assert not PartFiles(two).found()
    assert lines(two) == expected
    before = two.read_bytes()
    assert launched(2, **given, output=two).returncode == 0
    assert two.read_bytes() == before, "all was answered"


def simulated(monkeypatch: pytest.MonkeyPatch, world: int, stop: dict[int, int], **given: Any) -> None:
    """The processes of a job one after another in this one, each stopped after so many groups: what a kill leaves."""
    answer = MerPipeline.answer
    for rank in range(world):
        groups: list[int] = []

        def limited(self: MerPipeline, *arguments: Any, groups: list[int] = groups, rank: int = rank) -> Any:
            groups.append(1)
            if len(groups) > stop.get(rank, 10**6):
                raise KeyboardInterrupt
            return answer(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(ProcessGroup, "join", classmethod(lambda cls, rank=rank: cls(rank, world)))
            patch.setattr(ProcessGroup, "gather", lambda self, value: [value])
            patch.setattr(PartFiles, "merge", lambda self: None)  # the others are not through
            patch.setattr(MerPipeline, "answer", limited)
            try:
                infer(InferConfig(**given))
            except KeyboardInterrupt:
                continue


@pytest.mark.parametrize("read_ahead", [1, 2])
def test_any_number_of_processes_goes_on_from_the_parts_of_any_other(
    read_ahead: int, trained: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"batch_size": 4 // read_ahead, "read_ahead": read_ahead}
    given: dict[str, Any] = {"checkpoint": str(trained), "manifest": str(manifest), **sizes}
    one, output = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    infer(InferConfig(**given, output=str(one)))
    simulated(monkeypatch, 3, {0: 1, 1: 2, 2: 0}, **given, output=str(output))
    part = PartFiles(output).part(1)
    part.write_bytes(part.read_bytes()[:-9])  # a line that broke off
    simulated(monkeypatch, 2, {0: 1, 1: 1}, **given, output=str(output))
    assert not output.exists()
    assert len(PartFiles(output).found()) == 3
    infer(InferConfig(**given, output=str(output)))
    assert lines(output) == lines(one)
    assert not PartFiles(output).found()


def test_a_merge_that_was_cut_off_before_the_parts_were_removed_repeats_nothing(tmp_path: Path) -> None:
    files = PartFiles(tmp_path / "out.jsonl")
    files.output.write_text('{"id": "a"}\n{"id": "b"}\n')
    files.part(0).write_text('7\t{"id": "b"}\n9\t{"id": "d", "x": 1}\n9\t{"id": "d", "x": 2}\n')
    files.part(1).write_text('8\t{"id": "c"}\n0\t{"id": "a"}\n')
    files.merge()
    assert [(e["id"], e.get("x")) for e in lines(files.output)] == [
        ("a", None),
        ("b", None),
        ("c", None),
        ("d", 1),
        ("d", 2),
    ]
    assert not files.found()


def test_several_processes_without_a_manifest_and_a_file_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessGroup, "join", classmethod(lambda cls: cls(0, 2)))
    for given in ({"text": "x"}, {"stdin": True, "output": "out.jsonl"}):
        with pytest.raises(UserError, match="several processes need a --manifest and an --output file"):
            infer(InferConfig(checkpoint="nowhere", **given))


def test_a_manifest_is_read_as_it_is_answered_and_errors_keep_their_place(manifest: Path) -> None:
    stream = inputs(InferConfig(manifest=str(manifest)))
    for _ in range(11):
        next(stream)
    place, message = next(stream)  # type: ignore[misc]
    assert place == f"{manifest}:12"
    assert "JSON" in message
    with pytest.raises(UserError, match=":12"):
        next(inputs(InferConfig(manifest=str(manifest), on_bad_input="stop")))


def test_the_parts_of_a_file_are_those_of_its_own_name(tmp_path: Path) -> None:
    for name in ("out[1].jsonl.part-0", "out1.jsonl.part-0", "out[1].jsonl.part-old"):
        (tmp_path / name).write_text('3\t{"id": "a"}\n')
    (found,) = PartFiles(tmp_path / "out[1].jsonl").found()
    assert found.name == "out[1].jsonl.part-0"
    assert finished_ids(found, numbered=True) == {"a"}
