"""What one process writes, no second one writes: refused in one line before any work, and nothing of the lock stays."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import make_utterances

from llm_mer.data.store import write_store
from llm_mer.errors import UserError
from llm_mer.evaluation import evaluate as evaluation_module
from llm_mer.evaluation.evaluate import evaluate_checkpoint
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.experiments.comparison.compare import compare
from llm_mer.experiments.options import CompareConfig
from llm_mer.features.extract import ExtractConfig, extract
from llm_mer.storage.locks import LockOwner, lock_path

OTHER = LockOwner(4711, "elsewhere", "2026-01-01T00:00:00+00:00")


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place whose lock another process holds, as far as this one can tell."""
    import fcntl

    place = tmp_path / "out"
    lock_path(place).write_text(json.dumps(OTHER.__dict__))

    def refuse(descriptor: int, operation: int) -> None:
        if os.path.samestat(os.fstat(descriptor), os.stat(lock_path(place))):
            raise BlockingIOError(errno.EAGAIN, "held")

    monkeypatch.setattr(fcntl, "flock", refuse)
    return place


def write_with(command: str, place: Path, trained: Path, store: Path) -> None:
    """Begin to write ``place``."""
    if command == "store":
        write_store(make_utterances("train", 4), place)
    elif command == "extract":
        extract(ExtractConfig(manifest="m", output=str(place)), make_utterances("train", 2))
    elif command == "evaluate":
        evaluate_checkpoint(EvaluateConfig(checkpoint=str(trained), data=[str(store)], output=str(place)))
    else:
        compare(CompareConfig(config="configs/quickstart.yaml", output=str(place), adapters=["egmf"]))


@pytest.mark.parametrize("command", ["store", "extract", "evaluate", "compare"])
def test_a_second_writer_is_refused(command: str, held: Path, trained: Path, store: Path) -> None:
    with pytest.raises(UserError, match=r"out is being written by process 4711 on elsewhere since 2026-01-01T00:00"):
        write_with(command, held, trained, store)
    assert not held.exists()


def test_an_evaluation_folder_removed_while_it_is_written_is_an_error(
    trained: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluation_module.predict_conditions

    def removing(*arguments: Any, **options: Any) -> Any:
        result = whole(*arguments, **options)
        shutil.rmtree(tmp_path / "out")
        return result

    monkeypatch.setattr(evaluation_module, "predict_conditions", removing)
    options = {"output": str(tmp_path / "out"), "limit": 4, "resamples": 10}
    with pytest.raises(UserError, match="out: it was removed or moved while it was being written"):
        evaluate_checkpoint(EvaluateConfig(checkpoint=str(trained), data=[str(store)], **options))
    assert not list(tmp_path.iterdir())


def test_a_store_whose_unfinished_folder_is_removed_is_one_line(tmp_path: Path) -> None:
    def utterances() -> Any:
        yield from make_utterances("train", 4)
        for path in tmp_path.glob(".out.staging-*"):
            if path.is_dir():
                shutil.rmtree(path)

    with pytest.raises(UserError, match="out: it was removed or moved while it was being written"):
        write_store(utterances(), tmp_path / "out")
    assert not list(tmp_path.iterdir())
