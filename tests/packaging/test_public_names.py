"""`import llm_mer` is light, and gives every public name when it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_environment

import llm_mer


def test_importing_the_package_imports_no_library_but_the_standard_one(tmp_path: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); import llm_mer; assert llm_mer.__version__; dir(llm_mer)\n"
        "print(sorted({n.partition('.')[0] for n in set(sys.modules) - before} - sys.stdlib_module_names))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env=run_environment(PYTHONPATH=str(ROOT)), cwd=tmp_path, capture_output=True, text=True
    )
    assert found.stdout.strip() == "['llm_mer']", found.stderr


@pytest.mark.parametrize("name", [name for name in llm_mer.__all__ if name != "__version__"])
def test_a_public_name_is_the_object_of_its_module(name: str) -> None:
    found = getattr(llm_mer, name)
    assert found.__name__ == name
    assert found.__module__ == llm_mer._MODULES[name]
    assert found.__doc__


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse((ROOT / "llm_mer" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == llm_mer._MODULES
    assert set(llm_mer.__all__) == {*llm_mer._MODULES, "__version__"} == set(dir(llm_mer))


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="'llm_mer' has no attribute 'Pipeline'"):
        llm_mer.Pipeline  # noqa: B018
