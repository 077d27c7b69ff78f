"""What micro-batches weigh in a step, and how their losses are noted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm_mer.adapters.base import IGNORE_CLASS, FusionAdapter
from llm_mer.training.loss_weighting import LossNotes, StepTargets, auxiliary_share, known_targets, language_model_share


class Counting:
    """Of an adapter only what the weighting asks for."""

    loss_count = FusionAdapter.loss_count


ADAPTER: FusionAdapter = Counting()  # type: ignore[assignment]


def test_known_targets_are_counted_and_absent_ones_are_none() -> None:
    device = torch.device("cpu")
    batch = {"class_targets": torch.tensor([1, IGNORE_CLASS, 0]), "score_targets": torch.tensor([float("nan")] * 2 + [0.5])}
    assert known_targets(batch, device).tolist() == [2, 1]
    assert known_targets({}, device).tolist() == [0, 0]


@pytest.mark.parametrize("averaged", [False, True])
def test_weighted_means_of_unequal_micro_batches_are_the_mean_of_the_whole_batch(averaged: bool) -> None:
    """Two processes with two micro-batches each; the trainer averages over processes, and over steps when it says so."""
    generator = torch.Generator().manual_seed(0)
    losses = [[torch.rand(n, generator=generator).double() for n in sizes] for sizes in ((1, 4), (2, 3))]
    whole = torch.cat([part for process in losses for part in process])
    found = 0.0
    for process in losses:
        for part in process:
            targets = StepTargets(local=(len(part), 0), total=(len(whole), 0))
            share = auxiliary_share(ADAPTER, "ce", targets, steps=2, processes=2, averaged=averaged)
            found += share * float(part.mean()) / 2 / (2 if averaged else 1)
    assert found == pytest.approx(float(whole.mean()), rel=1e-12)


def test_a_loss_of_the_whole_batch_weighs_the_same_in_each_micro_batch() -> None:
    targets = StepTargets((1, 1), (8, 8))
    assert auxiliary_share(ADAPTER, "mic", targets, steps=4, processes=2, averaged=False) == 0.25
    assert auxiliary_share(ADAPTER, "mic", targets, steps=4, processes=2, averaged=True) == 1.0


def test_a_step_without_answer_tokens_or_targets_weighs_nothing() -> None:
    assert float(language_model_share(torch.tensor(0.0), torch.tensor(0), 2)) == 0.0
    assert auxiliary_share(ADAPTER, "ce", StepTargets((0, 0), (0, 0)), steps=1, processes=2, averaged=False) == 0.0


def test_notes_are_summed_over_a_step_and_kept_apart_between_steps() -> None:
    notes = LossNotes()
    for step, value in ((0, 1.5), (0, 2.5), (1, 8.0)):
        notes.add("loss_ce", step, torch.tensor(value), 2)
    assert notes.take() == {"loss_ce": [2.0, 4.0]}
    assert notes.take() == {}


def test_a_note_keeps_the_value_it_had_and_no_graph() -> None:
    value, notes = torch.tensor(3.0, requires_grad=True), LossNotes()
    notes.add("loss_lm", 0, value, 1)
    with torch.no_grad():
        value.fill_(7.0)
    assert notes.take() == {"loss_lm": [3.0]}


def test_more_notes_than_may_wait_are_all_there() -> None:
    notes = LossNotes()
    for i in range(3000):
        notes.add("loss_lm", i // 2, torch.tensor(float(i)), 1)
    assert notes.take() == {"loss_lm": [4.0 * i + 1 for i in range(1500)]}


def test_noting_reads_no_value_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scalar's value is asked for by ``item``, ``tolist`` and ``float`` alone: each would make the processor wait."""

    def refuse(self: Tensor, *_: object) -> None:
        raise AssertionError("a value was read")

    notes = LossNotes()
    with monkeypatch.context() as patched:
        for name in ("item", "tolist", "__float__", "__int__", "__bool__", "cpu"):
            patched.setattr(Tensor, name, refuse)
        notes.add("loss_lm", 0, torch.tensor(2.0), 1)
        known_targets({"class_targets": torch.tensor([1])}, torch.device("cpu"))
        language_model_share(torch.tensor(2.0), torch.tensor(4), 1)
        with pytest.raises(AssertionError, match="a value was read"):
            notes.take()
