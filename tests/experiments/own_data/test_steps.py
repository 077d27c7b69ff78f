"""Steps are done once, in a folder that holds one plan; what stopped a training says how to go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from own_tables import MOODS, write_table

from llm_mer.data.sources.manifest import read_manifest
from llm_mer.errors import UserError
from llm_mer.experiments.own_data import steps
from llm_mer.experiments.own_data.options import OwnDataOptions
from llm_mer.experiments.own_data.plan import Plan, make_plan
from llm_mer.experiments.own_data.steps import Progress, describe_differences, train_model, write_inputs
from llm_mer.training.interruption import Interrupted
from llm_mer.training.parsing import parse_given


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [[f'take "{n}", one', f"hello number {n}", MOODS[n % 3], n * 7 / 2] for n in range(15)]
    return write_table(tmp_path / "clips.csv", ("id", "text", "mood", "pleasure"), rows)


def plan_of(table: Path, overwrite: bool = False, **given: Any) -> Plan:
    output = str(table.parent / "run")
    options = OwnDataOptions(manifest=str(table), output_dir=output, overwrite_output_dir=overwrite)
    return make_plan(options, {"backbone": "none", "use_cpu": True, **given})


def test_a_step_is_done_once_and_again_only_for_another_plan_that_may_take_the_place(table: Path) -> None:
    calls: list[str] = []
    Progress.open(plan_of(table)).run("features", lambda: calls.append("first"))
    Progress.open(plan_of(table)).run("features", lambda: calls.append("again"))
    assert calls == ["first"]
    with pytest.raises(UserError, match=r"run was made otherwise: --seed 1111 there, 5 here; name another --output_dir, or"):
        Progress.open(plan_of(table, seed=5))
    Progress.open(plan_of(table, overwrite=True, seed=5)).run("features", lambda: calls.append("anew"))
    assert calls == ["first", "anew"]


def test_a_step_that_fails_is_not_done(table: Path) -> None:
    def fail() -> None:
        raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        Progress.open(plan_of(table)).run("features", fail)
    assert Progress.open(plan_of(table)).done == []


def test_a_folder_of_something_else_is_refused(table: Path) -> None:
    (table.parent / "run").mkdir()
    (table.parent / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"run holds what no `train --manifest` wrote; name a new folder"):
        Progress.open(plan_of(table, overwrite=True))
    assert (table.parent / "run" / "thesis.txt").read_text() == "mine"


def test_what_is_written_reads_back_as_the_plan(table: Path) -> None:
    plan = plan_of(table)
    plan.folders.root.mkdir()
    write_inputs(plan)
    assert read_manifest(plan.folders.manifest, ["mood", "pleasure"]) == plan.utterances
    assert json.loads(plan.folders.splits.read_text()) == {u.id: u.split for u in plan.utterances}
    given = parse_given(["--config", str(plan.folders.config)])
    assert given == plan.training
    assert json.loads(json.dumps(plan.inputs())) == plan.inputs()


def test_a_training_that_was_stopped_says_that_the_same_command_goes_on(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Interrupted(
            "stopped by SIGTERM after step 3; run/checkpoint-3 is whole; go on with --resume_from_checkpoint true"
        )

    monkeypatch.setattr(steps, "train", stop)
    with pytest.raises(Interrupted) as stopped:
        train_model(plan_of(table), ["llm-mer train"])
    assert str(stopped.value) == "stopped by SIGTERM after step 3; the same command goes on from here"


def test_differences_name_values_and_digests_do_not() -> None:
    saved = {"the table": "ab", "the tasks": {"a": 1}, "--seed": 1, "--gone": 2}
    now = {"the table": "cd", "the tasks": {"a": 2}, "--seed": 1, "--new": 3}
    assert describe_differences(saved, now) == [
        "the table changed", "the tasks changed", "--gone 2 there, None here", "--new None there, 3 here",
    ]  # fmt: skip
