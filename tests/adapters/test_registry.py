"""Which adapters there are, and what may be imported to find one."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from outside_package import write_package

from llm_mer import adapters
from llm_mer.adapters import (
    AdapterReference,
    adapter_class,
    adapter_names,
    check_reference,
    register_adapter,
    registry,
    use_adapter,
)
from llm_mer.adapters.egmf import EGMFAdapter
from llm_mer.adapters.gated_projector import GatedProjectorAdapter
from llm_mer.errors import UserError

FOLDER = Path(adapters.__file__).parent
PATH = "mer_extras.fusion:GatedSumAdapter"


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing registered here is known to other tests."""
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(registry, "_packages", {})
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mer_extras", "other_extras")]:
        del sys.modules[name]


def python(code: str, **environment: str) -> str:
    """The standard output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


# --- imports ----------------------------------------------------------------------------------------------------------


def imported_modules(file: Path) -> set[str]:
    """Every module a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.py")), ids=lambda file: file.relative_to(FOLDER).as_posix())
def test_an_adapter_imports_torch_and_files_of_its_own_folder_only(file: Path) -> None:
    allowed = {"torch", *sys.stdlib_module_names} | ({"xlstm"} if file.name == "gated_xlstm.py" else set())
    for module in imported_modules(file):
        own = module == "llm_mer.errors" or f"{module}.".startswith("llm_mer.adapters.")
        assert own or module.partition(".")[0] in allowed, f"{file.name} imports {module}"


def test_importing_the_package_imports_no_adapter_and_not_torch() -> None:
    code = "import sys, llm_mer.adapters\nprint(sorted({'torch', 'xlstm', 'llm_mer.adapters.egmf'} & set(sys.modules)))"
    assert python(code) == "[]"


def test_asking_for_one_adapter_imports_no_other() -> None:
    code = (
        "import sys\nfrom llm_mer.adapters import adapter_class\nadapter_class('egmf')\n"
        "print(sorted({'xlstm', 'transformers', 'llm_mer.adapters.egmf', 'llm_mer.adapters.lpgnet'} & set(sys.modules)))"
    )
    assert python(code) == "['llm_mer.adapters.egmf']"


# --- names ------------------------------------------------------------------------------------------------------------


def test_every_file_of_an_adapter_is_registered_under_the_name_its_class_has() -> None:
    assert {name: adapter_class(name).name for name in registry.BUILT_IN} == {name: name for name in registry.BUILT_IN}
    defined = {
        f"llm_mer.adapters.{file.stem}:{node.name}"
        for file in FOLDER.glob("*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == "FusionAdapter" for base in node.bases)
    }
    assert defined == set(registry.BUILT_IN.values())


def test_an_installed_packages_adapter_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gated_sum" not in adapter_names()
    monkeypatch.syspath_prepend(str(write_package(tmp_path)))
    assert adapter_names() == [*registry.BUILT_IN, "gated_sum"]
    assert "mer_extras" not in sys.modules  # a name alone imports nothing
    assert adapter_class("gated_sum").name == "gated_sum"
    assert registry.reference_of("gated_sum") == AdapterReference("gated_sum", PATH, "mer-extras", "0.3")
    assert adapter_names() == [*registry.BUILT_IN, "gated_sum"]


def test_a_built_in_name_is_never_another_packages_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(write_package(tmp_path, "egmf")))
    assert adapter_class("egmf") is EGMFAdapter
    assert adapter_names() == list(registry.BUILT_IN)
    assert "mer_extras" not in sys.modules


def test_two_packages_that_offer_one_name_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path)
    monkeypatch.syspath_prepend(str(write_package(tmp_path, name="other-extras")))
    with pytest.raises(UserError, match=r"(?=.*mer-extras 0\.3)(?=.*other-extras 0\.3)"):
        adapter_class("gated_sum")


def test_a_broken_package_is_one_line_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(write_package(tmp_path)))
    (tmp_path / "mer_extras" / "fusion.py").write_text("raise RuntimeError('no luck\\nat all')", encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter 'gated_sum' of mer-extras 0\.3: .* cannot be imported: no luck$"):
        adapter_class("gated_sum")


def test_a_class_named_by_its_module_is_imported_only_where_the_user_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(write_package(tmp_path, None)))
    with pytest.raises(UserError, match="not named by the user"):
        adapter_class(PATH)
    assert "mer_extras" not in sys.modules
    assert use_adapter(PATH) == PATH
    assert adapter_class(PATH).name == "gated_sum"
    assert registry.reference_of(PATH) == AdapterReference(PATH, PATH)


def test_a_module_of_the_working_directory_may_be_named(tmp_path: Path) -> None:
    write_package(tmp_path, None)
    code = (
        f"import os, sys; os.chdir({str(tmp_path)!r}); sys.path.remove('')\n"
        f"from llm_mer.adapters import use_adapter; print(use_adapter({PATH!r}))"
    )
    assert python(code) == PATH


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("mer_extras.fusion:Nothing", "cannot be imported: module 'mer_extras.fusion' has no attribute 'Nothing'"),
        ("mer_extras.nothing:GatedSumAdapter", "cannot be imported: No module named 'mer_extras.nothing'"),
        ("mer_extras.fusion:nn.Linear", "is no subclass of llm_mer.adapters.base.FusionAdapter"),
    ],
)
def test_what_cannot_be_an_adapter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, problem: str
) -> None:
    monkeypatch.syspath_prepend(str(write_package(tmp_path, None)))
    with pytest.raises(UserError, match=problem):
        use_adapter(name)


def test_a_class_can_be_registered_in_python() -> None:
    class Mine(GatedProjectorAdapter):
        name = "mine"

    assert register_adapter(Mine) is Mine
    assert register_adapter(Mine) is Mine  # again changes nothing
    assert adapter_class("mine") is Mine
    assert adapter_names()[-1] == "mine"
    with pytest.raises(UserError, match="'egmf' is taken by llm_mer"):
        register_adapter(Mine, "egmf")
    with pytest.raises(UserError, match=r"'mine' is taken by .*Mine"):
        register_adapter(GatedProjectorAdapter, "mine")
    with pytest.raises(UserError, match="no subclass"):
        register_adapter(int, "whole")  # type: ignore[type-var]


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(UserError, match=f"unknown adapter 'nope'; choose one of {', '.join(registry.BUILT_IN)}, or"):
        adapter_class("nope")


# --- what a checkpoint records ----------------------------------------------------------------------------------------


def test_a_checkpoints_adapter_must_be_the_class_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = AdapterReference("gated_sum", PATH, "mer-extras", "0.2")
    with pytest.raises(UserError, match=r"of mer-extras 0\.2: unknown adapter 'gated_sum'.*; install mer-extras$"):
        check_reference(recorded)
    monkeypatch.syspath_prepend(str(write_package(tmp_path)))
    check_reference(recorded)
    assert "mer-extras 0.2" in caplog.text
    assert "mer-extras 0.3" in caplog.text
    with pytest.raises(UserError, match=r"is elsewhere:Class, but here that name is mer_extras\.fusion"):
        check_reference(AdapterReference("gated_sum", "elsewhere:Class"))


def test_a_checkpoint_cannot_have_a_module_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(write_package(tmp_path, None)))
    with pytest.raises(UserError, match=re.escape(f"--adapter {PATH}")):
        check_reference(AdapterReference(PATH, PATH))
    with pytest.raises(UserError, match=re.escape(f"--adapter {PATH}")):
        check_reference(AdapterReference(PATH, PATH, "mer-extras", "0.3"))
    assert "mer_extras" not in sys.modules
