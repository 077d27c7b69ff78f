"""compare: the plan, the table from predictions, and one real comparison that is done once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import training_options

from llm_mer.adapters import ADAPTERS, adapter_class
from llm_mer.errors import UserError
from llm_mer.evaluation import compare
from llm_mer.evaluation.compare import CompareConfig, plan, run


def config_file(store: Path, folder: Path) -> Path:
    argv = training_options(store, "none", folder / "unused", tasks=None)
    values: dict[str, object] = {}
    for name, value in zip(argv[::2], argv[1::2], strict=True):
        values[name.removeprefix("--")] = yaml.safe_load(value)
    values |= {"tasks": ["emotion", "sentiment"], "num_train_epochs": 3, "learning_rate": 5e-3}
    for name in ("adapter", "output_dir", "seed", "num_pseudo_tokens", "backbone"):
        values.pop(name)
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_the_plan_is_adapters_times_ablations_times_backbones() -> None:
    systems = plan(
        CompareConfig(
            config="x", adapters=["egmf", "lpgnet"], ablations=["egmf:gating=uniform"], backbones=["none", "tiny:llama"]
        )
    )
    assert [(s.adapter, s.ablation, s.backbone) for s in systems] == [
        (adapter, ablation, backbone)
        for backbone in ("none", "tiny:llama")
        for adapter, ablation in (("egmf", "full"), ("egmf", "gating=uniform"), ("lpgnet", "full"))
    ]


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_every_row_of_the_papers_tables_is_an_option_its_adapter_has(name: str) -> None:
    cls = adapter_class(name)
    systems = plan(CompareConfig(config="x", adapters=[name], ablations=["paper"]))
    assert len(systems) == 1 + len(cls.ablations) + 3
    for label, changes in cls.ablations.items():
        default = cls.config_class()
        assert changes, label
        for option, value in changes.items():
            assert getattr(default, option) != value, f"{name}, {label}: {option} is {value} anyway"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapters": ["nope"]}, "'nope' is none"),
        ({"ablations": ["egmf"]}, "write paper"),
        ({"ablations": ["egmf:colour=red"]}, "no option colour"),
        ({"ablations": ["egnf:gating=uniform"]}, "'egnf' is no adapter"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(CompareConfig(config="x", **changes))  # type: ignore[arg-type]


def test_a_comparison_has_every_system_its_cost_and_is_done_only_once(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = CompareConfig(
        config=str(config_file(store, tmp_path)),
        output=str(tmp_path / "out"),
        adapters=["egmf", "gated_projector"],
        ablations=["gated_projector:use_gate=false"],
        backbones=["none"],
        seeds=[1, 2],
        conditions=["without:audio"],
        resamples=50,
    )
    text = run(wanted)
    assert capsys.readouterr().out == ""  # standard output is left to the table
    for name in ("egmf (none)", "gated_projector (none)", "gated_projector use_gate=false (none)"):
        assert text.count(f"| {name} |") == 2 + 1, name  # as is, without audio, cost
    result = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert len(result["runs"]) == 6
    references = [r for r in result["rows"] if r["system"] == "egmf (none)"]
    assert all(r["cell"]["p_value"] is None for r in references)
    others = [r for r in result["rows"] if r["system"] == "gated_projector (none)"]
    assert all(0 < r["cell"]["p_value"] <= 1 for r in others)
    assert all(r["seeds"] == 2 for r in result["rows"])

    lines = (tmp_path / "out" / "egmf-none-full-1" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    gates = {line["condition"]: "diagnostics" in line for line in map(json.loads, lines)}
    assert gates == {"as is": True, "without audio": False}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(compare, "train_and_predict", never)
    assert run(wanted) == text
    wanted.metrics = ["weighted_f1", "accuracy"]
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))["rows"]
    both = run(wanted)
    again = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))["rows"]
    assert "weighted_f1" in both
    assert [r for r in again if r["metric"] == "accuracy"] == [r for r in rows if r["metric"] == "accuracy"]
    wanted.overrides = ["num_train_epochs=1"]
    with pytest.raises(UserError, match="other options"):
        run(wanted)


def test_a_split_or_metric_that_is_none_is_told_before_any_training(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llm_mer.training

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a training was begun")

    monkeypatch.setattr(llm_mer.training, "build_trainer", never)
    config = CompareConfig(config=str(config_file(store, tmp_path)), output=str(tmp_path / "out"), split="tset")
    with pytest.raises(UserError, match=r"no split 'tset'; it holds .*test"):
        run(config)
    config.metrics = ["f2"]
    with pytest.raises(UserError, match="metrics: f2 is none; choose from accuracy"):
        run(config)


def test_every_system_of_a_seed_sees_the_data_in_the_same_order(store: Path, tmp_path: Path) -> None:
    from llm_mer.training import build_trainer, parse_arguments

    config = CompareConfig(config=str(config_file(store, tmp_path)), adapters=["egmf", "gia_mic"], backbones=["none"])
    orders = []
    for system in plan(config):
        arguments = compare.training_arguments(config, system, 5, tmp_path / system.adapter)
        trainer = build_trainer(*parse_arguments(arguments))
        orders.append([batch["class_targets"].tolist() for batch in trainer.get_train_dataloader()])
    assert orders[0] == orders[1]
