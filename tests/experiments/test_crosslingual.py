"""The matrix of training and test languages: who was trained on what, and the gap on the same utterances."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import make_utterances, training_options

from llm_mer.data.store import write_store
from llm_mer.errors import UserError
from llm_mer.evaluation.p_values import PValue
from llm_mer.experiments.crosslingual import CrosslingualConfig, TransferScore, markdown, run


def config_file(store: Path, folder: Path) -> Path:
    argv = training_options(store, "none", folder / "unused", tasks=None)
    values = {n.removeprefix("--"): yaml.safe_load(v) for n, v in zip(argv[::2], argv[1::2], strict=True)}
    for name in ("adapter", "output_dir", "seed", "num_pseudo_tokens"):
        values.pop(name)
    values |= {"tasks": ["emotion", "sentiment"], "num_train_epochs": 3, "auxiliary_head": True}
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_a_model_of_one_language_is_scored_on_both_and_the_gap_is_between_the_same_utterances(
    store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    text = run(
        CrosslingualConfig(config=str(config_file(store, tmp_path)), output=str(out), metrics=["accuracy"], resamples=50)
    )
    assert (out / "crosslingual.md").read_text(encoding="utf-8") == text + "\n"
    runs = {json.loads(p.read_text(encoding="utf-8"))["system"]: p.parent for p in out.glob("*/run.json")}
    questions, right = {}, {}
    for system, folder in runs.items():
        trained = match.group(1) if (match := re.search(r"languages=(\w+)", system)) else "en and zh"
        questions[trained] = json.loads((folder / "run.json").read_text(encoding="utf-8"))["train_questions"]
        for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines():
            answer = json.loads(line)
            if answer["task"] == "emotion":
                right.setdefault((trained, answer["language"]), []).append(answer["value"] == answer["truth"])
    assert questions["en"] == questions["zh"] == questions["en and zh"] / 2
    assert set(right) == {(t, s) for t in ("en", "zh", "en and zh") for s in ("en", "zh")}
    rows = [line for line in text.split("### ")[1].splitlines() if re.match(r"\| (en|zh|en and zh) \(", line)]
    assert len(rows) == 3
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        trained = cells[0].rpartition(" (")[0]
        for tested, cell in zip(("en", "zh"), cells[1:], strict=True):
            score, own = np.mean(right[trained, tested]), np.mean(right[tested, tested])
            assert cell.startswith(f"{score:.3f} [")
            assert ("gap" in cell) == (trained != tested)
            if trained != tested:
                assert f"gap {score - own:+.3f} [" in cell


def test_a_training_on_one_language_fits_its_feature_statistics_on_that_language(store: Path, tmp_path: Path) -> None:
    from llm_mer.training.parsing import parse_arguments
    from llm_mer.training.run_data import prepare_data

    data = parse_arguments(["--config", str(config_file(store, tmp_path)), "--languages", "zh"]).data
    prepared = prepare_data(data, with_prompts=False)
    spoken = [prepared.train.utterance(row) for row in prepared.train.rows]
    assert {u.language for u in spoken} == {"zh"}
    steps = np.concatenate([u.audio_features for u in spoken]).astype(np.float64)
    np.testing.assert_allclose(prepared.statistics["audio"].mean, steps.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_data_of_one_language_are_refused_before_any_training(tmp_path: Path) -> None:
    english = [u for split in ("train", "test") for u in make_utterances(split, 16) if u.language == "en"]
    write_store(english, tmp_path / "english")
    config = CrosslingualConfig(config=str(config_file(tmp_path / "english", tmp_path)), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match="the data have no zh, only en"):
        run(config)
    assert not (tmp_path / "out").exists()


def test_the_matrix_marks_a_gap_that_is_told_apart() -> None:
    def cell(trained: str, tested: str, p: PValue | None) -> TransferScore:
        gap = None if p is None else -0.2
        interval = None if p is None else (-0.3, -0.1)
        return TransferScore(
            "egmf", "", "emotion", "accuracy", trained, tested, 8, 40, 0.25, 0.5, (0.4, 0.6), gap, interval, p
        )

    cells = [
        cell("en", "en", None),
        cell("en", "zh", PValue(0.01, True)),
        cell("zh", "en", PValue(0.3)),
        cell("zh", "zh", None),
    ]
    cells += [cell("en and zh", tested, PValue(0.5)) for tested in ("en", "zh")]
    lines = markdown(cells, 1).splitlines()
    assert lines[0] == "### egmf: emotion, accuracy"
    assert lines[4] == "| *majority or mean* | 0.250 | 0.250 |"
    assert lines[5] == "| en (8) | 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600], gap -0.200 [-0.300, -0.100], p ≤ 0.010* |"
    assert "p 0.300 |" in lines[6]
