"""The manifest that one trained on is answered, targets of one's own and all."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from llm_mer.cli.infer import infer
from llm_mer.inference.inputs import InferConfig


def test_labels_of_the_training_data_are_read_and_said_to_be_passed_over(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copytree(trained, tmp_path / "checkpoint"))
    description = json.loads((checkpoint / "llm_mer.json").read_text(encoding="utf-8"))
    assert description["data"]["labels"] == ["emotion", "sentiment"]
    description["data"]["labels"].append("arousal")
    (checkpoint / "llm_mer.json").write_text(json.dumps(description), encoding="utf-8")
    for record in ("checksums.json", "complete.json"):
        (checkpoint / record).unlink(missing_ok=True)
    manifest = tmp_path / "m.jsonl"
    lines = [{"id": name, "text": "the book", "emotion": "joy", "arousal": 4} for name in "ab"]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with caplog.at_level(logging.INFO, logger="llm_mer"):
        assert infer(InferConfig(checkpoint=str(checkpoint), manifest=str(manifest), tasks=["emotion"])) == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["id"], row["truth"]) for row in rows] == [("a", "joy"), ("b", "joy")]
    said = [record.message for record in caplog.records if "are ignored" in record.message]
    assert said == ["labels arousal belong to none of the requested tasks and are ignored"]
