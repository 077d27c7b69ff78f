"""What the wheel holds, built as `pip` builds it, without network."""

import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from llm_mer.resources.files import SHIPPED, resolve_file, resource


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def wheel_names(folder: Path) -> set[str]:
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def tracked(*places: str) -> set[str]:
    """Files of the repository under these names, caches left out."""
    found = [path for place in places for path in [ROOT / place, *(ROOT / place).rglob("*")] if path.is_file()]
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_whole_package_and_every_shipped_file_and_nothing_else(built: Path) -> None:
    expected = tracked("llm_mer") | {f"llm_mer/resources/{name}" for name in tracked(*SHIPPED)}
    inside = {name for name in wheel_names(built) if ".dist-info/" not in name}
    assert inside == expected
    for name in ("prompts/short_zh_classification.yaml", "configs/quickstart.yaml", "configs/papers/lpgnet.yaml",
                 "deepspeed_configs/zero3.json", "accelerate_configs/fsdp2.yaml", "finetune.py", "infer.py"):  # fmt: skip
        assert f"llm_mer/resources/{name}" in inside
    assert {"llm_mer/prompting/resources/tasks.yaml", "llm_mer/reporting/page.html.jinja", "llm_mer/py.typed"} <= inside


def test_the_wheel_names_its_command_and_its_licence(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    information = next(name for name in archive.namelist() if name.endswith("/entry_points.txt"))
    assert "llm-mer = llm_mer.cli.main:main" in archive.read(information).decode()
    assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())


def test_a_wheel_built_from_the_sdist_is_the_wheel(built: Path, tmp_path: Path) -> None:
    import tarfile

    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as stream:
        stream.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "again")]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    assert wheel_names(tmp_path / "again") == wheel_names(built)


def test_the_build_ships_what_the_lookup_knows() -> None:
    assert runpy.run_path(str(ROOT / "hatch_build.py"))["SHIPPED"] == SHIPPED
    assert all(resource(name).exists() for name in SHIPPED)


def test_a_file_named_from_elsewhere_is_the_shipped_one_unless_there_is_one_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_file("configs/quickstart.yaml") == str(ROOT / "configs" / "quickstart.yaml")
    assert resolve_file("deepspeed_configs/zero2.json") == str(ROOT / "deepspeed_configs" / "zero2.json")
    for unknown in ("configs/none.yaml", "quickstart.yaml", "configs/../pyproject.toml", "pyproject.toml", "", "auto"):
        assert resolve_file(unknown) == unknown
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text("adapter: lsgmer\n")
    assert resolve_file("configs/quickstart.yaml") == "configs/quickstart.yaml"


@pytest.mark.parametrize("name", ["pyproject.toml", "configs/none.yaml", "", "tests"])
def test_what_is_not_shipped_is_no_resource(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="not among the files"):
        resource(name)
