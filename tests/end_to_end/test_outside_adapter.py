"""An adapter of a user's own package, from training to the report and to answers, with no line of it in this package."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import make_utterances, training_options
from outside_package import write_package

from llm_mer.adapters import registry
from llm_mer.cli.main import main

BY_CLASS = "mer_extras.fusion:GatedSumAdapter"


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing registered here is known to other tests."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_packages", {})
    yield
    forget_package()


def forget_package() -> None:
    """As in a new process: the package's modules are not imported and its adapter is not registered."""
    registry._registered.clear()
    registry._packages.clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mer_extras"]:
        del sys.modules[name]


@pytest.mark.parametrize("backbone", ["none", "llama"])
@pytest.mark.parametrize("by_class", [False, True], ids=["entry point", "package.module:Class"])
def test_an_adapter_of_another_package_is_trained_evaluated_reported_and_asked(
    by_class: bool,
    backbone: str,
    store: Path,
    backbones: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(write_package(tmp_path / "site", None if by_class else "gated_sum")))
    adapter = BY_CLASS if by_class else "gated_sum"
    named = ("--adapter", BY_CLASS) if by_class else ()  # a checkpoint alone never has a class of the user's imported
    run, scores, page = tmp_path / "run", tmp_path / "scores", tmp_path / "report.html"

    folder = "none" if backbone == "none" else backbones[backbone]
    trained = training_options(store, folder, run, adapter=adapter, temperature=0.5, max_steps=2)
    assert main(["train", *trained]) == 0, capsys.readouterr().err

    evaluate = ("evaluate", "--checkpoint", str(run), "--data", str(store), "--output", str(scores), "--resamples", "10")
    forget_package()
    if by_class:
        assert main(evaluate) == 2
        assert f"--adapter {BY_CLASS}" in capsys.readouterr().err
        assert "mer_extras" not in sys.modules
    assert main([*evaluate, *named]) == 0, capsys.readouterr().err
    rows = json.loads((scores / "evaluation.json").read_text())["rows"]
    assert {row["task"] for row in rows} == {"emotion"}

    forget_package()
    assert main(["report", "--evaluations", str(scores), "--output", str(page)]) == 0, capsys.readouterr().err
    assert "mer_extras" not in sys.modules  # what the page shows of the adapter is in the evaluation
    assert "Shares of the sum" in page.read_text(encoding="utf-8")

    utterance = make_utterances("test", 1)[0]
    np.savez(tmp_path / "clip.npz", audio=utterance.audio_features, vision=utterance.vision_features)
    answers = tmp_path / "answers.jsonl"
    infer = ("infer", "--checkpoint", str(run), "--features", str(tmp_path / "clip.npz"), "--text", utterance.text)
    assert main([*infer, *named, "--output", str(answers), "--echo", "--full"]) == 0, capsys.readouterr().err
    (answer,) = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert answer["task"] == "emotion"
    assert sum(answer["probabilities"].values()) == pytest.approx(1.0, abs=1e-3)
    assert sum(answer["diagnostics"]["sum_weights"]) == pytest.approx(1.0, abs=1e-3)
    assert "shares 0." in capsys.readouterr().out
