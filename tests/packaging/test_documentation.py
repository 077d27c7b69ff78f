"""What the documentation names exists: files of this repository, make targets and commands."""

import re
from pathlib import Path

import pytest

from llm_mer.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / f"{name}.md" for name in ("README", "README.zh", "CONTRIBUTING"))]
FOLDERS = "llm_mer|configs|tests|benchmarks|scripts|examples|deepspeed_configs|accelerate_configs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w(?![\w*{{<…-])", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_make_target_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    commands = {name.split()[0] for name in COMMANDS}
    assert set(re.findall(r"llm-mer ([a-z][\w-]*)", text)) <= commands
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
