"""Stages of a training: words first, auxiliary losses that fade."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_mer.adapters.base import FusionAdapter
from llm_mer.errors import UserError
from llm_mer.training.injection_schedule import InjectionSchedule
from llm_mer.training.options import ModelArguments


def test_nothing_is_withheld_and_nothing_fades_by_default() -> None:
    schedule = InjectionSchedule()
    assert not any(schedule.withholds(step, 10) for step in range(10))
    assert [schedule.auxiliary_weight(step, 10) for step in range(10)] == [1.0] * 10


def test_words_come_first_for_their_share_of_the_steps() -> None:
    schedule = InjectionSchedule(words_first=0.4)
    assert [schedule.withholds(step, 10) for step in range(10)] == [True] * 4 + [False] * 6


def test_auxiliary_weights_fall_in_a_line_to_nothing() -> None:
    schedule = InjectionSchedule(auxiliary_fade=0.5)
    assert [schedule.auxiliary_weight(step, 8) for step in range(8)] == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words_first": 1.0}, r"words_first: 1\.0; it must lie in \[0, 1\)"),
        ({"words_first": -0.1}, "words_first"),
        ({"auxiliary_fade": 0.0}, r"auxiliary_fade: 0\.0; it must lie in \(0, 1\]"),
        ({"auxiliary_fade": 1.5}, "auxiliary_fade"),
        ({"backbone": "none", "words_first": 0.5}, r"words_first: 0\.5; with backbone none"),
        ({"backbone": "none", "auxiliary_fade": 0.5}, r"auxiliary_fade: 0\.5; with backbone none"),
    ],
)
def test_other_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelArguments(**options)


def test_a_training_withholds_first_and_fades(
    arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_trainer import finetune

    passed, weighted = [], []
    original = FusionAdapter.forward

    def forward(self: FusionAdapter, inputs: Any) -> Any:
        output = original(self, inputs)
        if self.training:
            passed.append(bool(output.pseudo_tokens.abs().sum() > 0))
        return output

    weight = InjectionSchedule.auxiliary_weight

    def auxiliary_weight(self: InjectionSchedule, step: int, steps: int) -> float:
        weighted.append((step, steps, weight(self, step, steps)))
        return weighted[-1][2]

    monkeypatch.setattr(FusionAdapter, "forward", forward)
    monkeypatch.setattr(InjectionSchedule, "auxiliary_weight", auxiliary_weight)
    changes = {"auxiliary_head": "true", "max_steps": 6, "words_first": 0.5, "auxiliary_fade": 0.5, "logging_steps": 1}
    finetune(arguments(output=tmp_path / "run", **changes))
    assert passed == [False] * 3 + [True] * 3
    assert sorted(dict.fromkeys(weighted)) == [(s, 6, pytest.approx(max(0.0, 1 - s / 3))) for s in range(6)]
