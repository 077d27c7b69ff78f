"""The versions that were tested are pinned, each direct dependency among them."""

import re
import tomllib
from importlib import metadata

import pytest
from conftest import ROOT

PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
DIRECT = [
    re.split(r"[<>=!~ ]", requirement)[0]
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
]


def test_every_direct_dependency_has_a_pin() -> None:
    assert set(DIRECT) <= set(PINS)


@pytest.mark.parametrize("name", DIRECT)
def test_what_is_installed_is_what_is_pinned(name: str) -> None:
    assert metadata.version(name).partition("+")[0] == PINS[name]
