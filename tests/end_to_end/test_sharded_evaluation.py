"""``llm-mer evaluate`` on two processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import make_utterances, options
from forked import run_ranks

from llm_mer.cli.main import main
from llm_mer.data.store import write_store
from llm_mer.evaluation.evaluate import EvaluateConfig
from llm_mer.evaluation.journal import JOURNAL
from llm_mer.evaluation.over_seeds import run
from llm_mer.inference.prediction import Prediction
from llm_mer.inference.predictor import Predictor


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "predictions.jsonl").open(encoding="utf-8")]
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in found]


def test_two_processes_give_the_files_of_one_to_the_last_digit_and_finish_what_one_began(
    trained: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_store(make_utterances("test", 10, seed=3), tmp_path / "other")
    given: dict[str, Any] = {"conditions": ["missing:0.3", "shuffle:audio"], "batch_size": 5, "resamples": 20}
    given |= {"checkpoint": str(trained), "data": [str(store), str(other)], "by": ["turn"]}
    one = run(EvaluateConfig(**given, output=str(tmp_path / "one")))
    done: list[int] = []
    predict_batch = Predictor.predict_batch

    def interrupted(self: Predictor, *arguments: Any) -> list[Prediction]:
        if len(done) == 6:
            raise KeyboardInterrupt
        done.append(1)
        return predict_batch(self, *arguments)

    monkeypatch.setattr(Predictor, "predict_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(EvaluateConfig(**given, output=str(tmp_path / "two")))
    assert (tmp_path / "two" / "store" / JOURNAL).is_file()
    monkeypatch.undo()
    command = ["evaluate", *options(**given, output=tmp_path / "two")]
    first, second = run_ranks(2, lambda: main(command), tmp_path)
    # Printed once, so the two processes knew of one another.
    assert first.strip() == str(one).replace(str(tmp_path / "one"), str(tmp_path / "two"))
    assert second == ""
    for name in ("store", "other"):
        first, second = tmp_path / "one" / name, tmp_path / "two" / name
        assert lines(first) == lines(second)
        assert (first / "evaluation.json").read_text() == (second / "evaluation.json").read_text()
        assert not (second / JOURNAL).exists()
