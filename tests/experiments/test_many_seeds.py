"""Many seeds: one training each, what is finished kept, mean and deviation of every metric; evaluated and reported alike."""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import adapter_weights, make_utterances, training_options

from llm_mer.checkpoints.run_manifest import RunManifest
from llm_mer.cli.train import finetune
from llm_mer.data.store import write_store
from llm_mer.errors import UserError
from llm_mer.evaluation.evaluate import EvaluateConfig
from llm_mer.evaluation.over_seeds import SeedEvaluation, over_seeds, seed_folders
from llm_mer.evaluation.over_seeds import run as evaluate
from llm_mer.evaluation.rows import Evaluation
from llm_mer.evaluation.spread import Spread
from llm_mer.reporting import report
from llm_mer.reporting.blocks import Table
from llm_mer.reporting.sections.systems import seed_groups, seed_section

SEEDS = (11, 22)
SMALL: dict[str, Any] = {
    "backbone": "none",
    "use_text": "false",
    "limit_train": 16,
    "limit_eval": 12,
    "max_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
}


@pytest.fixture(scope="module")
def seeded(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds, trained for two steps."""
    folder = tmp_path_factory.mktemp("seeded") / "run"
    return finetune(
        training_options(store, "none", folder, seeds=SEEDS, **{k: v for k, v in SMALL.items() if k != "backbone"})
    )


@pytest.fixture
def copy(seeded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(seeded, tmp_path / "run"))


@pytest.fixture
def again(arguments: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """The same command line into ``copy``, with changes."""
    return lambda **changes: arguments(**{**SMALL, "seeds": SEEDS, **changes})


def test_the_spread_is_the_mean_and_the_sample_standard_deviation() -> None:
    values = [0.5, 0.625, 0.75]
    found = Spread.of(values)
    assert found.mean == statistics.fmean(values)
    assert found.std == pytest.approx(statistics.stdev(values), abs=1e-15)
    assert str(found) == "0.625 ± 0.125"
    assert (Spread.of([0.5]).std, str(Spread.of([0.5]))) == (None, "0.500")
    assert (Spread.of([0.5, float("nan")]), str(Spread.of([0.5, None]))) == (Spread(None, None, [0.5, None]), "–")


def test_each_seed_has_its_own_checkpoint_and_the_table_is_of_their_manifests(seeded: Path) -> None:
    manifests = [RunManifest.load(seeded / f"seed-{seed}") for seed in SEEDS]
    assert [m.seed for m in manifests] == list(SEEDS)
    assert all(m.complete for m in manifests)
    assert manifests[0].weights_sha256 != manifests[1].weights_sha256
    written = json.loads((seeded / "seeds.json").read_text())
    assert written["seeds"] == list(SEEDS)
    for name in ("eval_emotion_en_accuracy", "eval_loss", "eval_score"):
        values = [m.metrics[name] for m in manifests]
        assert written["metrics"][name]["values"] == values
        assert written["metrics"][name]["mean"] == pytest.approx(statistics.fmean(values))  # type: ignore[type-var]
        assert written["metrics"][name]["std"] == pytest.approx(statistics.stdev(values))  # type: ignore[type-var]


def test_a_seed_among_many_trains_as_it_would_alone(seeded: Path, arguments: Callable[..., list[str]]) -> None:
    alone = adapter_weights(finetune(arguments(**SMALL, seed=SEEDS[1])))
    among = adapter_weights(seeded / f"seed-{SEEDS[1]}")
    assert alone.keys() == among.keys()
    assert all(bool((alone[name] == among[name]).all()) for name in alone)


def test_the_same_command_keeps_what_is_finished_and_does_the_rest(
    copy: Path, again: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (copy / f"seed-{seed}" for seed in SEEDS)
    unfinished = RunManifest.load(second)
    unfinished.finished = None
    unfinished.save(second)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    digest = RunManifest.load(second).weights_sha256
    assert finetune(again()) == copy
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    assert RunManifest.load(second).complete
    assert RunManifest.load(second).weights_sha256 == digest
    printed = capsys.readouterr().out
    assert "mean ± std" in printed
    assert "emotion_en_accuracy" in printed


def test_a_finished_seed_of_other_options_data_or_weights_is_refused_before_training(
    copy: Path, again: Callable[..., list[str]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"seed-11 holds a finished run that differs: learning_rate: 0\.005 then, 0\.1 now"):
        finetune(again(learning_rate=0.1))
    other = write_store([*make_utterances("train", 24, 9), *make_utterances("valid", 12, 9)], tmp_path / "other")
    with pytest.raises(UserError, match=r"data \(fingerprint\)"):
        finetune(again(data=other))
    weights = copy / "seed-11" / "model.safetensors"
    shutil.copy(copy / "seed-22" / "model.safetensors", weights)
    with pytest.raises(UserError, match="seed-11: its weights are not those"):
        finetune(again())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, r"seeds: \[1, 1\] names a seed twice"),
        ({"seeds": [-1]}, r"seeds: \[-1\]; it must be a list of whole numbers"),
        ({"resume_from_checkpoint": "somewhere"}, "resume_from_checkpoint: 'somewhere' with seeds; only true"),
    ],
    ids=["twice", "negative", "resume"],
)
def test_seeds_that_make_no_sense_are_refused(
    changes: dict[str, Any], message: str, arguments: Callable[..., list[str]]
) -> None:
    with pytest.raises(UserError, match=message):
        finetune(arguments(**{**SMALL, "seeds": [1, 2], **changes}))


def test_evaluate_takes_a_folder_of_seeds_and_writes_their_mean_and_deviation(copy: Path, store: Path) -> None:
    config = EvaluateConfig(str(copy), str(store), resamples=20, limit=12)
    text = evaluate(config)
    one, two = (Evaluation.load(copy / f"seed-{seed}" / "evaluation") for seed in SEEDS)
    found = json.loads((copy / "evaluation" / "seeds.json").read_text())
    assert found["seeds"] == list(SEEDS)
    assert len(found["rows"]) == len(one.rows)
    for row, first, second in zip(found["rows"], one.rows, two.rows, strict=True):
        assert (row["condition"], row["language"], row["subset"], row["n"]) == (
            first.condition,
            first.language,
            first.subset,
            first.n,
        )
        values = [first.metrics["accuracy"], second.metrics["accuracy"]]
        assert row["metrics"]["accuracy"]["values"] == values
        assert row["baseline"] == first.baseline == second.baseline
        assert row["metrics"]["accuracy"]["std"] == pytest.approx(statistics.stdev(values))
    assert "2 seeds: 11, 22; mean ± std" in text
    assert str(Spread.of([r.find(task="emotion").metrics["accuracy"] for r in (one, two)])) in text  # type: ignore[union-attr]


def test_evaluate_names_a_seed_that_is_not_there(seeded: Path, store: Path) -> None:
    assert list(seed_folders(seeded)) == list(SEEDS)
    with pytest.raises(UserError, match=r"--seeds 33: .* holds no checkpoint seed-33; it holds seeds 11, 22"):
        evaluate(EvaluateConfig(str(seeded), str(store), seeds=[11, 33]))


def test_evaluations_of_other_data_are_not_averaged() -> None:
    shared: dict[str, Any] = {"checkpoint": {}, "split": "test", "seed": 0, "resamples": 1}
    with pytest.raises(UserError, match="b was evaluated on y, split test; a on x, split test"):
        over_seeds([Evaluation(name="a", data="x", **shared), Evaluation(name="b", data="y", **shared)])
    assert SeedEvaluation([1], "x", "test", over_seeds([Evaluation(name="a", data="x", **shared)])).rows == []


def test_the_report_averages_runs_that_differ_by_seed_only_and_shows_their_manifests(
    copy: Path, store: Path, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    other = finetune(arguments(**{**SMALL, "seed": 33, "hidden_size": 8, "output_dir": tmp_path / "other"}))
    for place in (copy, other):
        evaluate(EvaluateConfig(str(place), str(store), resamples=20, limit=12))
    folders = [str(copy / f"seed-{seed}") for seed in SEEDS]
    systems = [(name, report.load_evaluation(name)) for name in [*folders, str(other)]]
    (group,) = seed_groups(systems)
    assert list(group) == list(SEEDS)
    (table,) = (block for block in seed_section(systems).blocks if isinstance(block, Table))
    rows = {line[0].text: line for line in table.rows}
    values = [loaded.evaluation.find(task="emotion", language="en").metrics["accuracy"] for _, loaded in systems[:2]]  # type: ignore[union-attr]
    assert rows["accuracy ↑"][1].text == str(Spread.of(values))
    each = [f"{s}: {v:.3f}" for s, v in zip(SEEDS, values, strict=True)]
    baseline = systems[0][1].evaluation.find(task="emotion", language="en").baseline["accuracy"]  # type: ignore[union-attr]
    assert rows["accuracy ↑"][1].below == (*each, f"baseline {baseline:.3f}")
    page, _ = report.build_page(report.ReportConfig([*folders, str(other)]))
    for word in ("Over seeds", "How it was trained", "Every option", "finetune.py --data", "threads 1 each"):
        assert word in page
