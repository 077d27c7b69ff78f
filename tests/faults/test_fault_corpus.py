"""Every broken input of the corpus is refused in one line that names it, says what was found and what would be right."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import broken_inputs
import pytest
from broken_inputs import Fault, Ground
from broken_json import JSON_FAULTS
from broken_setups import SETUP_FAULTS

from llm_mer.errors import UserError

FAULTS = (*broken_inputs.FAULTS, *JSON_FAULTS, *SETUP_FAULTS)
LONGEST = 700


def test_the_corpus_holds_at_least_sixty_broken_inputs_of_every_kind_under_names_of_their_own() -> None:
    assert [name for name, count in Counter(fault.name for fault in FAULTS).items() if count > 1] == []
    assert len(FAULTS) >= 60
    kinds = Counter(fault.name.partition(":")[0] for fault in FAULTS)
    for kind in ("media", "manifest", "pickle", "MELD", "CPED", "MOSI", "checkpoint", "prompt", "task", "store", "options"):
        assert kinds[kind] >= 4, kind


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_broken_input_is_refused_in_one_line_that_names_it(
    fault: Fault, tmp_path: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    ground = Ground(tmp_path / "ground", request)
    ground.folder.mkdir()
    given = fault.build(ground)
    with pytest.raises(UserError) as caught:
        fault.read(given, ground)
    message = str(caught.value)
    assert re.search(fault.message, message), message
    assert (given.name if fault.named is None else fault.named) in message, message
    assert "\n" not in message.strip(), message
    assert len(message.replace(str(tmp_path), "")) < LONGEST, message
    assert not (tmp_path / "ran").exists()
    assert not Path("ran").exists(), "a pickle was obeyed"
    assert "Traceback" not in capfd.readouterr().err
