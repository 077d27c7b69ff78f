"""Batches kept while an evaluation runs: what was done is used again, and only where everything is the same."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llm_mer.checkpoints.integrity import write_checksums
from llm_mer.data.store import write_store
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.evaluation.evaluate import EvaluateConfig
from llm_mer.evaluation.journal import JOURNAL, Journal, predict_all
from llm_mer.evaluation.over_seeds import run
from llm_mer.inference.prediction import Prediction
from llm_mer.inference.predictor import Predictor

SETTINGS = {"split": "test", "seed": 0, "tasks": None}


def answers() -> list[Prediction]:
    generator = np.random.default_rng(0)
    return [
        Prediction(
            f"u{i}",
            "sentiment",
            "zh",
            float(generator.normal()),
            probabilities={"-1.0": 0.25, "1.0": 0.75},
            log_probabilities=[float(v) for v in generator.normal(size=2)],
            interval=(float(generator.normal()), 1.0),
            tags=("a", "b"),
            diagnostics={"gate": [0.1, [float("nan")]]},
            length=3,
        )
        for i in range(3)
    ]


def test_what_was_kept_comes_back_to_the_last_digit(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / JOURNAL, SETTINGS)
    journal.append("as is", (4, 0, 2), answers())
    journal.append("without text", (1,), answers()[:1])
    found = Journal.open(tmp_path / JOURNAL, SETTINGS)
    assert list(found.finished("as is")) == [(4, 0, 2)]
    assert list(found.finished("without text")) == [(1,)]
    assert found.finished("shuffled") == {}
    # As text, where a NaN is equal to itself.
    assert repr(found.finished("as is")[4, 0, 2]) == repr(answers())
    found.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_a_text_may_hold_what_some_take_for_the_end_of_a_line(tmp_path: Path, character: str) -> None:
    said = answers()[:1]
    said[0].generated = f"joy{character}fear"
    journal = Journal.open(tmp_path / JOURNAL, SETTINGS)
    journal.append("as is", (0,), said)
    (back,) = Journal.open(tmp_path / JOURNAL, SETTINGS).finished("as is")[0,]
    assert back.generated == said[0].generated


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_was_cut_off_is_done_again_and_the_lines_before_it_are_not(tmp_path: Path, cut: int) -> None:
    path = tmp_path / JOURNAL
    journal = Journal.open(path, SETTINGS)
    journal.append("as is", (0,), answers()[:1])
    journal.append("as is", (1,), answers()[:1])
    path.write_bytes(path.read_bytes()[:-cut])
    found = Journal.open(path, SETTINGS)
    assert list(found.finished("as is")) == [(0,)]
    found.append("as is", (1,), answers()[:1])
    assert list(Journal.open(path, SETTINGS).finished("as is")) == [(0,), (1,)]


def test_a_journal_of_other_settings_is_refused_with_what_differs_and_stays(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    Journal.open(path, SETTINGS).append("as is", (0,), answers()[:1])
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"seed was 0, now 1; limit was None, now 5; finish that one"):
        Journal.open(path, {**SETTINGS, "seed": 1, "limit": 5})
    path.write_bytes(before + b"{}\n")
    with pytest.raises(UserError, match="damaged"):
        Journal.open(path, SETTINGS)
    assert path.read_bytes().startswith(before)


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "predictions.jsonl").open(encoding="utf-8")]
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in found]


def test_an_interrupted_evaluation_does_the_rest_and_ends_with_the_same_files(
    trained: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str, **changes: Any) -> EvaluateConfig:
        given = {"conditions": ["missing:0.3"], "batch_size": 4, "resamples": 20, "by": ["length"], **changes}
        return EvaluateConfig(checkpoint=str(trained), data=[str(store)], output=str(tmp_path / name), **given)

    done: list[int] = []
    stop_after = 11
    predict_batch = Predictor.predict_batch

    def counted(self: Predictor, *arguments: Any) -> list[Prediction]:
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(1)
        return predict_batch(self, *arguments)

    monkeypatch.setattr(Predictor, "predict_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        run(config("part"))
    assert [path.name for path in (tmp_path / "part").iterdir()] == [JOURNAL]
    with pytest.raises(UserError, match="batch_size was 4, now 8"):
        run(config("part", batch_size=8))
    done.clear()
    stop_after = -1
    text = run(config("part"))
    assert len(done) == 16 - 11, "of 2 conditions x 32 utterances / 4"
    whole = run(config("whole"))
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == ["evaluation.json", "predictions.jsonl"]
    assert lines(tmp_path / "part") == lines(tmp_path / "whole")
    assert (tmp_path / "part" / "evaluation.json").read_text() == (tmp_path / "whole" / "evaluation.json").read_text()
    assert str(text).splitlines()[:-1] == str(whole).splitlines()[:-1]


def test_answers_of_another_checkpoint_or_other_data_are_not_taken(
    copied: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conftest import make_utterances

    config = EvaluateConfig(checkpoint=str(copied), data=[str(store)], output=str(tmp_path / "out"), resamples=20)
    with monkeypatch.context() as patched:
        patched.setattr("llm_mer.evaluation.evaluate.save_evaluation", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(config)
    other = write_store(make_utterances("test", 8, seed=3), tmp_path / "other")
    with pytest.raises(UserError, match="data was"):
        run(EvaluateConfig(checkpoint=str(copied), data=[str(other)], output=str(tmp_path / "out"), resamples=20))
    (copied / "llm_mer.json").write_text((copied / "llm_mer.json").read_text() + " ")
    write_checksums(copied)
    with pytest.raises(UserError, match="checkpoint was"):
        run(config)


class _FirstOfTwo(ProcessGroup):
    """A process whose neighbour has these answers."""

    def __init__(self, others: list[Prediction]) -> None:
        super().__init__(0, 2)
        object.__setattr__(self, "others", others)

    def gather(self, value: Any) -> list[Any]:
        return [value, getattr(self, "others") if value != {} else {}]  # noqa: B009


class _Untold:
    """Two questions about utterances without transcript and conversation, and whoever answers them."""

    questions = utterances = (SimpleNamespace(row=0, text=None), SimpleNamespace(row=1, text=None))

    def __len__(self) -> int:
        return 2

    def position(self, _: int) -> None:
        return None

    def batches(self, _: Any) -> list[Any]:
        return [SimpleNamespace(questions=(0,)), SimpleNamespace(questions=(1,))]

    def evaluating(self) -> Any:
        return nullcontext()

    def predict_batch(self, *_: Any) -> list[Prediction]:
        return [Prediction("own", "sentiment", "zh", 1.0)]


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_an_answer_that_is_not_finite_on_another_process_ends_this_one_too(value: float) -> None:
    double: Any = _Untold()
    others = _FirstOfTwo([Prediction("other", "sentiment", "zh", value)])
    if value == value:
        assert [p.id for p in predict_all(double, double, "as is", others, progress=False)] == ["own", "other"]
        return
    with pytest.raises(UserError, match=r"utterance 'other'.*NaN or infinity"):
        predict_all(double, double, "as is", others, progress=False)
