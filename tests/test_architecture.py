"""The house as DESIGN says it: which rooms there are, which way imports run, how long a file may be."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "llm_mer"
MOST_LINES = 500
TABLES = {"backbones/tiny_text.py", "data/sources/synthetic/sentences.py"}
"""Files that hold a table, which may be longer."""


def test_imports_run_downwards_and_in_no_circle() -> None:
    found = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 broken" in found.stdout


def test_no_module_of_logic_lies_loose_at_the_top() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} <= {"__init__.py", "__main__.py", "errors.py"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_longer_than_500_lines_unless_it_is_a_table(path: Path) -> None:
    if str(path.relative_to(PACKAGE)) not in TABLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
