"""The main job as a newcomer walks it: clips, features, training, evaluation, an answer about a clip, the report."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, options, run_environment


def start(*argv: str | Path) -> str:
    """Standard output of a program run from the repository's root, which must end well."""
    result = subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=ROOT,
        env=run_environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="the media extra is not installed")
def test_from_clips_to_a_report(backbones: dict[str, Path], tmp_path: Path) -> None:
    corpus, features = tmp_path / "corpus", tmp_path / "features"
    start("-m", "llm_mer", "make-corpus", "--output", corpus, "--utterances_per_language", "60")
    entries = [json.loads(line) for line in (corpus / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(entries) == 120
    start(
        "-m",
        "llm_mer",
        "extract",
        "--manifest",
        corpus / "manifest.jsonl",
        "--output",
        features,
        "--audio",
        "librosa",
    )
    assert (features / "quarantine.jsonl").read_text() == ""
    for name, switches in (("egmf", {}), ("text", {"use_audio": "false", "use_vision": "false"})):
        start(
            "finetune.py",
            *options(config=ROOT / "configs" / "quickstart.yaml", data=features, output_dir=tmp_path / name),
            *options(backbone=backbones["llama"], hidden_size=16, num_train_epochs=1, max_steps=6, **switches),
        )
        start(
            *(
                "-m",
                "llm_mer",
                "evaluate",
                "--checkpoint",
                tmp_path / name,
                "--data",
                features,
                "--resamples",
                "50",
            ),
            *(() if switches else ("--conditions", "shuffle:audio,vision", "--keep_features")),
        )
    held_out = [entry for entry in entries if entry["split"] == "test"]
    for language in ("en", "zh"):
        entry = next(e for e in held_out if e["language"] == language)
        clip = ("--video", corpus / entry["video"], "--text", entry["text"])
        answers = [json.loads(line) for line in start("infer.py", "--checkpoint", tmp_path / "egmf", *clip).splitlines()]
        assert [(a["task"], a["language"]) for a in answers] == [("emotion", language), ("sentiment", language)]
        assert sum(answers[0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        # The clip's own features were read: they are those the evaluation answered from.
        evaluated = (tmp_path / "egmf" / "evaluation" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        same = [e for e in map(json.loads, evaluated) if e["id"] == entry["id"] and e["condition"] == "as is"]
        for answer, known in zip(answers, same, strict=True):
            assert answer["diagnostics"]["expert_weights"] == pytest.approx(known["diagnostics"]["expert_weights"], abs=1e-3)
    page = tmp_path / "report.html"
    start(
        *("-m", "llm_mer", "report", "--evaluations", tmp_path / "egmf", "--text_only", tmp_path / "text"),
        *("--facts", "quickstart", "--output", page),
    )
    text = page.read_text(encoding="utf-8")
    for word in ("Confusion", "neutral", "Training"):
        assert word in text
