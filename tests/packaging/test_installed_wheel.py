"""The wheel, installed apart from the repository, trains and answers by itself."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, run_environment, training_options

import llm_mer
from llm_mer.prompting.templates import load_prompts

pytestmark = pytest.mark.slow  # builds a wheel and an environment

Run = Callable[..., subprocess.CompletedProcess[str]]
DECOY = """\
name: short
language: {language}
kind: classification
answer: word
task: "DECOY {{labels}} "
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the built wheel; other packages are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, str(wheel)], cwd=folder, check=True, capture_output=True, env=run_environment())
    (site_packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # A path in a .pth file is searched last, and .pth files there are not read: an editable install of the repository in
    # that environment is therefore not found.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "others.pth").write_text("\n".join(others) + "\n")
    return folder / "venv"


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Run:
    """Run a program of the environment in an empty folder but for `prompts/`, whose templates nobody asked for."""
    here = tmp_path / "elsewhere"
    (here / "prompts").mkdir(parents=True)
    for language in ("en", "zh"):
        text = DECOY.format(language=language)
        (here / "prompts" / f"short_{language}_classification.yaml").write_text(text)

    def call(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in run_environment().items() if k not in ("PYTHONPATH", "PYTHONWARNINGS")}
        path = f"{environment / 'bin'}{os.pathsep}{kept.get('PATH', '')}"
        command = [str(environment / "bin" / program), *map(str, arguments)]
        return subprocess.run(command, cwd=here, env={**kept, "PATH": path}, capture_output=True, text=True, timeout=300)

    return call


def test_the_installed_package_is_the_wheels_and_tells_its_version(environment: Path, run: Run) -> None:
    found = run("python", "-c", "import llm_mer; print(llm_mer.__file__)")
    assert Path(found.stdout.strip()).is_relative_to(environment), found.stderr
    found = run("python", "-m", "llm_mer", "--version")
    assert found.stdout == f"llm-mer {llm_mer.__version__}\n", found.stderr
    found = run("llm-mer", "files", "configs/quickstart.yaml")
    assert Path(found.stdout.strip()).is_relative_to(environment), found.stderr


def test_the_installed_commands_train_a_step_with_the_shipped_prompts_and_answer(
    run: Run, store: Path, backbones: dict[str, Path], tmp_path: Path
) -> None:
    arguments = training_options(store, backbones["llama"], tmp_path / "run", max_steps=1, prompts=["short"])
    trained = run("llm-mer", "train", *arguments)
    assert trained.returncode == 0, trained.stderr
    # Nothing but this program's own lines: no other library's warning, no bar where there is no terminal.
    said = [line.split(":")[0] for line in trained.stderr.splitlines()]
    assert said == ["training egmf"], trained.stderr
    description = json.loads((tmp_path / "run" / "llm_mer.json").read_text())
    asked = {(prompt["language"], prompt["kind"]): prompt["task"] for prompt in description["processor"]["prompts"]}
    assert asked == {(prompt.language, prompt.kind): prompt.task for prompt in load_prompts("short")}
    answered = run("llm-mer", "infer", "--checkpoint", tmp_path / "run", "--text", "the train leaves at nine")
    assert answered.returncode == 0, answered.stderr
    assert answered.stderr == ""
    (answer,) = map(json.loads, answered.stdout.splitlines())
    assert answer["task"] == "emotion"
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-6)
