"""compare --folds: trainings on folds, their answers pooled, the same however they were interrupted or spread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import make_utterances
from sklearn.metrics import accuracy_score

from llm_mer.data.folds import Fold, Folds
from llm_mer.data.store import write_store
from llm_mer.errors import UserError
from llm_mer.evaluation.rows import load_predictions
from llm_mer.experiments.comparison import compare
from llm_mer.experiments.comparison.compare import run
from llm_mer.experiments.comparison.folds import prepare_folds
from llm_mer.experiments.comparison.runs import base_config, base_of_run
from llm_mer.experiments.comparison.systems import PlannedRun, plan_systems
from llm_mer.experiments.options import CompareConfig
from llm_mer.training.run_data import prepare_data

CONFIG: dict[str, Any] = {
    "tasks": ["emotion"],
    "hidden_size": 16,
    "num_heads": 2,
    "dropout": 0.0,
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-3,
    "disable_tqdm": True,
    "num_train_epochs": 2,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three speakers, over all splits."""
    utterances = [u for split in ("train", "test") for u in make_utterances(split, 32, dialogues=False)]
    for number, utterance in enumerate(utterances):
        utterance.speaker = f"s{number // 2 % 3}"  # of both languages
    folder = tmp_path_factory.mktemp("folds") / "store"
    write_store(utterances, folder)
    return folder


def asked(store: Path, tmp_path: Path, output: str = "out", **changes: Any) -> CompareConfig:
    given: dict[str, Any] = {
        "folds": "speaker",
        "validation": 0.3,
        "runs": 2,
        "resamples": 50,
        "metrics": ["accuracy"],
        **changes,
    }
    config = tmp_path / "base.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "data": str(store)}), encoding="utf-8")
    return CompareConfig(config=str(config), output=str(tmp_path / output), backbones=["none"], **given)


def answers(config: CompareConfig) -> dict[str, dict[str, Any]]:
    """``{run folder: {utterance id: (value, truth)}}``."""
    return {
        str(path.parent.relative_to(config.output)): {p.id: (p.value, p.truth) for p in load_predictions(path)["as is"]}
        for path in sorted(Path(config.output).rglob("predictions.jsonl"))
    }


def read(config: CompareConfig) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(config.output) / "comparison.json").read_text(encoding="utf-8"))
    return content


def test_every_fold_is_trained_and_tested_and_the_answers_are_pooled(
    spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = asked(spoken, tmp_path)
    text = run(wanted)
    found = answers(wanted)
    runs = [f"egmf-none-full-{seed}" for seed in (1111, 1112)]
    assert sorted(found) == [f"{name}/fold-s{k}" for name in runs for k in range(3)]
    for name in runs:
        tested = [i for folder, by_id in found.items() if folder.startswith(name) for i in by_id]
        assert len(tested) == len(set(tested)) == 64

    # The pooled score, the scores of the folds and the constant answers, from the answers and the folds alone.
    (row,), table = read(wanted)["rows"][-1:], read(wanted)["folds"]
    folds = Folds.load(Path(wanted.output) / "folds.json")
    truth = {i: t for by_id in found.values() for i, (_, t) in by_id.items()}
    pooled = [
        accuracy_score(*zip(*(x for f, by_id in found.items() if f.startswith(name) for x in by_id.values()), strict=True))
        for name in runs
    ]
    assert (row["language"], row["n"], row["seeds"], row["unit"], row["units"]) == ("all", 64, 2, "speaker", 3)
    assert row["cell"]["mean"] == pytest.approx(np.mean(pooled))
    assert row["cell"]["std"] == pytest.approx(np.std(pooled, ddof=1))
    assert row["unparseable_rate"] == 0.0
    constant_right = []
    for score, fold in zip(table["scores"], folds.folds, strict=True):
        names = [truth[i] for i in fold.train]
        commonest = {name for name in names if names.count(name) == max(map(names.count, names))}
        right = [max(np.mean([truth[i] == c for i in fold.test]) for c in [c]) for c in commonest]
        assert any(score["baseline"] == pytest.approx(r) for r in right)
        constant_right.append(score["baseline"] * len(fold.test))
        own = [accuracy_score(*zip(*found[f"{name}/fold-{fold.name}"].values(), strict=True)) for name in runs]
        assert (score["fold"], score["n"], score["values"]) == (fold.name, len(fold.test), pytest.approx(own))
    assert row["baseline"] == pytest.approx(sum(constant_right) / 64)
    values = [v for score in table["scores"] for v in score["values"]]
    assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} |" in text
    assert "3 folds by speaker, 2 run(s) on each" in text

    monkeypatch.setattr(compare, "train_and_predict", lambda *_: pytest.fail("a finished fold was trained again"))
    assert run(wanted) == text
    with pytest.raises(UserError, match=r"folds\.json: the finished runs there have other folds; name another --output"):
        run(asked(spoken, tmp_path, fold_seed=1))


@pytest.mark.slow
def test_interrupted_and_resumed_in_other_processes_and_from_its_file_it_comes_to_the_same(
    spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = asked(spoken, tmp_path, "whole", runs=1)
    text = run(whole)

    train, done = compare.train_and_predict, []

    def interrupted(*given: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(given)
        return train(*given)

    resumed = asked(spoken, tmp_path, "resumed", runs=1)
    with monkeypatch.context() as patch:
        patch.setattr(compare, "train_and_predict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(resumed)
    assert len(answers(resumed)) == 2
    rest = asked(spoken, tmp_path, "resumed", runs=1, folds=str(tmp_path / "whole" / "folds.json"), jobs=2)
    scores = run(rest).partition("### Cost")[0]
    assert scores.partition("folds by speaker")[0] == text.partition("### Cost")[0].partition("folds by speaker")[0]
    assert answers(rest) == answers(whole)
    assert read(rest)["rows"] == read(whole)["rows"]


def test_a_fold_trains_on_its_training_part_and_chooses_on_its_validation(spoken: Path, tmp_path: Path) -> None:
    wanted = asked(spoken, tmp_path)
    (system,) = plan_systems(wanted)
    base = base_config(wanted, system.adapter)
    folds = prepare_folds(wanted, base)
    assert folds is not None
    for fold in folds.folds:
        data = base_of_run(wanted, PlannedRun(system, 1, fold.name), base).data
        prepared = prepare_data(data, with_prompts=False)
        assert prepared.evaluation is not None
        for dataset, ids in ((prepared.train, fold.train), (prepared.evaluation, fold.valid)):
            assert sorted(name for name, _, _ in dataset.transcripts()) == sorted(ids)
        steps = np.concatenate([prepared.train.utterance(row).audio_features for row in prepared.train.rows])
        np.testing.assert_allclose(prepared.statistics["audio"].mean, steps.mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": "session"}, "looked for a tag session:NAME"),
        ({"folds": "65"}, "--folds 65: the data have 3 speakers"),
        ({"folds": "nowhere.json"}, "--folds nowhere.json: no such file; write session, speaker"),
        ({"overrides": ["eval_split=test"]}, "eval_split: 'test' with --folds"),
        ({"validation": 0.0}, "no split 'valid' to evaluate on"),
    ],
)
def test_folds_that_cannot_be_or_would_choose_on_what_is_tested_are_refused(
    spoken: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(asked(spoken, tmp_path, **changes))
    assert not list(tmp_path.rglob("predictions.jsonl"))


def test_folds_of_other_data_and_names_of_one_folder_are_refused(spoken: Path, tmp_path: Path) -> None:
    for names, ids, message in (("ab", ["nobody"], "no utterance"), (["a/b", "a-b"], None, "the folder fold-a-b")):
        ids = ids or ["train-000", "train-001"]
        made = [Fold(names[0], ("train-002",), (), (ids[0],)), Fold(names[1], ("train-002",), (), (ids[-1] + "",))]
        Folds(tuple(made[: 2 if len(ids) == 2 else 1])).save(tmp_path / "given.json")
        with pytest.raises(UserError, match=message):
            run(asked(spoken, tmp_path, folds=str(tmp_path / "given.json")))


def test_runs_are_seeds_in_a_row_and_folds_score_their_test_part() -> None:
    assert CompareConfig(config="x", runs=3).seeds == [1111, 1112, 1113]
    assert CompareConfig(config="x", runs=2, seeds=[5]).seeds == [5, 6]
    for changes, message in (
        ({"runs": 2, "seeds": [1, 2]}, "--runs 2 beside 2 seeds"),
        ({"runs": 0}, "--runs 0: it must be at least 1"),
        ({"jobs": 0}, "--jobs 0: it must be at least 1"),
        ({"folds": "5", "split": "valid"}, "--split valid: with --folds"),
    ):
        with pytest.raises(UserError, match=message):
            CompareConfig(config="x", **changes)  # type: ignore[arg-type]
