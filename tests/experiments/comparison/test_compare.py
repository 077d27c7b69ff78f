"""compare: the plan, the table from predictions, and one real comparison that is done once."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import ROOT, make_utterances, training_options

from llm_mer.adapters import adapter_class, adapter_names, build_adapter
from llm_mer.adapters.gia_mic import GIAMICConfig
from llm_mer.checkpoints.run_manifest import RunManifest
from llm_mer.errors import UserError
from llm_mer.experiments.comparison import compare
from llm_mer.experiments.comparison.compare import run
from llm_mer.experiments.comparison.ineffective_ablations import drop_ineffective_ablations
from llm_mer.experiments.comparison.results import RunResult
from llm_mer.experiments.comparison.runs import base_config, conditions_of, run_config
from llm_mer.experiments.comparison.systems import CompareConfig, System, plan_systems
from llm_mer.experiments.comparison.table import check_precision, format_cell, score_cell
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import get_task
from llm_mer.storage.fingerprints import file_sha256
from llm_mer.training.run_config import RunConfig
from llm_mer.training.run_data import prepare_data


def config_file(store: Path, folder: Path, **changes: object) -> Path:
    argv = training_options(store, "none", folder / "unused", tasks=None)
    values: dict[str, object] = {}
    for name, value in zip(argv[::2], argv[1::2], strict=True):
        values[name.removeprefix("--")] = yaml.safe_load(value)
    values |= {"tasks": ["emotion", "sentiment"], "num_train_epochs": 3, "learning_rate": 5e-3}
    for name in ("adapter", "output_dir", "seed", "num_pseudo_tokens", "backbone"):
        values.pop(name)
    values |= changes
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_the_plan_is_adapters_times_ablations_times_backbones() -> None:
    systems = plan_systems(
        CompareConfig(
            config="x", adapters=["egmf", "lpgnet"], ablations=["egmf:gating=uniform"], backbones=["none", "tiny:llama"]
        )
    )
    assert [(s.adapter, s.ablation, s.backbone) for s in systems] == [
        (adapter, ablation, backbone)
        for backbone in ("none", "tiny:llama")
        for adapter, ablation in (("egmf", "full"), ("egmf", "gating=uniform"), ("lpgnet", "full"))
    ]


def test_a_text_only_twin_stands_beside_every_adapter_with_a_language_model() -> None:
    systems = plan_systems(
        CompareConfig(config="x", adapters=["egmf", "lpgnet"], backbones=["none", "tiny:llama"], twins=["text"])
    )
    twins = [(s.adapter, s.backbone, s.options) for s in systems if s.ablation == "text-only twin"]
    assert twins == [(name, "tiny:llama", {"num_pseudo_tokens": "0"}) for name in ("egmf", "lpgnet")]
    assert len(systems) == 6


@pytest.mark.parametrize("name", sorted(adapter_names()))
def test_every_row_of_the_papers_tables_is_an_option_its_adapter_has(name: str) -> None:
    cls = adapter_class(name)
    systems = plan_systems(CompareConfig(config="x", adapters=[name], ablations=["paper"]))
    assert len(systems) == 1 + len(cls.ablations) + 3 + 3 + 1
    alone = plan_systems(CompareConfig(config="x", adapters=[name], ablations=["paper"], backbones=["none"]))
    assert {s.ablation for s in systems} - {s.ablation for s in alone} == {"no LoRA"}
    for label, changes in cls.ablations.items():
        default = cls.config_class()
        assert changes, label
        for option, value in changes.items():
            assert getattr(default, option) != value, f"{name}, {label}: {option} is {value} anyway"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapters": ["nope"]}, "'nope' is unknown"),
        ({"ablations": ["egmf"]}, "write paper"),
        ({"ablations": ["egmf:colour=red"]}, "no option colour"),
        ({"ablations": ["egmf:feature_sizes=3"]}, "no option feature_sizes"),
        ({"ablations": ["egmf:backbone=none"]}, "named with --adapters and --backbones"),
        ({"ablations": ["*:tasks=sentiment"]}, "tasks is the same for every system"),
        ({"ablations": ["egnf:gating=uniform"]}, "'egnf' is no adapter"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_systems(CompareConfig(config="x", **changes))  # type: ignore[arg-type]


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
        conditions=["without:audio", "missing:0.5"],
        resamples=50,
    )
    text = run(wanted)
    assert capsys.readouterr().out == ""  # standard output is left to the table
    for name in ("egmf (none)", "gated_projector (none)", "gated_projector use_gate=false (none)"):
        assert text.count(f"| {name} |") == 3 + 1, name  # as is, without audio, missing rate 0.5, cost
    result = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert len(result["runs"]) == 6
    for entry in result["runs"]:
        answers = tmp_path / "out" / plan_systems(wanted)[0].folder(1) / "predictions.jsonl"
        own = (entry["system"], entry["seed"]) == ("egmf (none)", 1)
        assert (entry["predictions_sha256"] == file_sha256(answers)) == own
    references = [r for r in result["rows"] if r["system"] == "egmf (none)"]
    assert all(r["cell"]["p_value"] is None and r["reference"] is None for r in references)
    for system, reference in (
        ("gated_projector (none)", "egmf (none)"),
        ("gated_projector use_gate=false (none)", "gated_projector (none)"),
    ):
        others = [r for r in result["rows"] if r["system"] == system]
        assert all(0 < r["cell"]["p_value"]["value"] <= 1 and r["reference"] == reference for r in others)
        assert f"of {system} against {reference}" in text
    assert all(r["seeds"] == 2 for r in result["rows"])
    manifests = {seed: RunManifest.load(tmp_path / "out" / f"egmf-none-full-{seed}") for seed in (1, 2)}
    assert {seed: (m.seed, m.complete) for seed, m in manifests.items()} == {1: (1, True), 2: (2, True)}

    lines = (tmp_path / "out" / "egmf-none-full-1" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    gates = {line["condition"]: "diagnostics" in line for line in map(json.loads, lines)}
    assert gates == {"as is": True, "without audio": False, "missing rate 0.5": False}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(compare, "train_and_predict", never)
    assert run(wanted) == text
    wanted.output = str((tmp_path / "out").rename(tmp_path / "moved"))
    assert run(wanted) == text
    wanted.output = str((tmp_path / "moved").rename(tmp_path / "out"))
    wanted.metrics = ["accuracy", "weighted_f1"]
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))["rows"]
    both = run(wanted)
    again = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))["rows"]
    assert "accuracy" in both
    assert [r for r in again if r["metric"] == "weighted_f1"] == [r for r in rows if r["metric"] == "weighted_f1"]
    wanted.overrides = ["num_train_epochs=1"]
    with pytest.raises(UserError, match=r"other options: num_train_epochs was \d\.0, now 1\.0; name another --output"):
        run(wanted)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trainings are only noted: every run leaves a right answer to every question."""

    def answer(config: CompareConfig, base: RunConfig, system: System, seed: int, folder: Path, settings: Any) -> RunResult:
        from llm_mer.data.dataset import MerDataset
        from llm_mer.data.reading import read_utterances
        from llm_mer.evaluation.rows import save_predictions
        from llm_mer.inference.prediction import Prediction
        from llm_mer.prompting.tasks import get_task

        data = run_config(base, system, seed, folder).data
        tasks = [get_task(name) for name in data.tasks]
        dataset = MerDataset(read_utterances(data.data)[0][config.split], tasks)
        answers = []
        for question in dataset.questions:
            u = dataset.utterance(question.row)
            answers.append(Prediction(u.id, question.task.name, u.language, value=question.truth, truth=question.truth))
        folder.mkdir(parents=True)
        save_predictions(folder / "predictions.jsonl", {"as is": answers})
        made.append(folder.name)
        result = RunResult(
            **vars(settings),
            system=system.name,
            seed=seed,
            modalities=["audio", "vision"],
            parameters={"adapter": 1, "trainable": 1},
            train_questions=1,
            train_seconds=1.0,
            steps=1,
            milliseconds_per_answer=1.0,
            shift_probability={},
            tasks={task.name: task.to_dict() for task in tasks},
        )
        (folder / "run.json").write_text(json.dumps(vars(result)), encoding="utf-8")
        return result

    made: list[str] = []
    monkeypatch.setattr(compare, "train_and_predict", answer)
    return made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "valid"}, "split was 'test', now 'valid'; name another --output or delete it"),
        ({"conditions": ["without:audio"]}, r"conditions was \[\], now \['without:audio'\]"),
        ({"dialogue_decoder": True}, "dialogue_decoder was False, now True"),
        ({"subsets": ["neutral_words"], "metrics": ["weighted_f1"], "resamples": 30}, None),
    ],
)
def test_a_finished_run_is_used_again_only_for_what_it_was_scored_on(
    store: Path, tmp_path: Path, quick: list[str], changes: dict[str, object], message: str | None
) -> None:
    common: dict[str, Any] = {"config": str(config_file(store, tmp_path)), "output": str(tmp_path / "out")}
    common |= {"backbones": ["none"], "resamples": 20}
    run(CompareConfig(**common))
    if message is None:
        run(CompareConfig(**{**common, **changes}))
    else:
        with pytest.raises(UserError, match=message):
            run(CompareConfig(**{**common, **changes}))
    assert quick == ["egmf-none-full-1111"]


def test_a_finished_run_of_another_yaml_or_other_data_is_not_used_again(
    store: Path, tmp_path: Path, quick: list[str]
) -> None:
    from llm_mer.data.store import write_store

    config = CompareConfig(config=str(config_file(store, tmp_path)), output=str(tmp_path / "out"), resamples=20)
    config.backbones = ["none"]
    run(config)
    config_file(store, tmp_path, num_train_epochs=4)
    with pytest.raises(UserError, match=r"other options: num_train_epochs was \d\.0, now 4\.0; name"):
        run(config)
    utterances = [u for split in ("train", "valid", "test") for u in make_utterances(split, 24)]
    config_file(write_store(utterances, tmp_path / "store"), tmp_path)
    run(CompareConfig(config=config.config, output=str(tmp_path / "other"), backbones=["none"], resamples=20))
    utterances[0].text = "the train leaves at ten"
    write_store(utterances, tmp_path / "store")
    with pytest.raises(UserError, match=r"data \(fingerprint\) was '[0-9a-f]{12}', now '[0-9a-f]{12}'"):
        run(CompareConfig(config=config.config, output=str(tmp_path / "other"), backbones=["none"], resamples=20))
    assert len(quick) == 2


def test_answers_that_were_changed_or_cut_off_are_not_compared(store: Path, tmp_path: Path, quick: list[str]) -> None:
    config = CompareConfig(config=str(config_file(store, tmp_path)), output=str(tmp_path / "out"), resamples=20)
    config.backbones = ["none"]
    run(config)
    path, answers = (tmp_path / "out" / quick[0] / name for name in ("run.json", "predictions.jsonl"))
    entry, whole = json.loads(path.read_text(encoding="utf-8")), answers.read_bytes()
    path.write_text(json.dumps({**entry, "predictions_sha256": file_sha256(answers)}), encoding="utf-8")
    run(config)
    for changed in (b"".join(whole.splitlines(keepends=True)[:9]), whole.replace(b'"joy"', b'"fear"', 1), whole * 2, None):
        answers.write_bytes(changed or b"") if changed is not None else answers.unlink()
        with pytest.raises(UserError, match=r"predictions\.jsonl is not what run\.json was written with"):
            run(config)
    answers.write_bytes(whole)
    path.write_text(json.dumps({k: v for k, v in entry.items() if k != "predictions_sha256"}), encoding="utf-8")
    run(config)  # one of an earlier version does not say it
    assert len(quick) == 1


def test_a_run_that_an_older_version_wrote_is_refused_in_words(store: Path, tmp_path: Path, quick: list[str]) -> None:
    config = CompareConfig(config=str(config_file(store, tmp_path)), output=str(tmp_path / "out"), resamples=20)
    config.backbones = ["none"]
    run(config)
    path = tmp_path / "out" / quick[0] / "run.json"
    entry = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({k: v for k, v in entry.items() if k != "split"}), encoding="utf-8")
    with pytest.raises(UserError, match=r"run.json was written by another version of this program \(split\)"):
        run(config)
    path.write_text(json.dumps(entry)[:40], encoding="utf-8")
    with pytest.raises(UserError, match="is incomplete"):
        run(config)


def test_the_dialogue_decoder_needs_dialogues_and_classes(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    from llm_mer.data.store import write_store

    monkeypatch.setattr(Trainer, "train", None)  # both are told before the training
    utterances = [u for split in ("train", "valid", "test") for u in make_utterances(split, 24, dialogues=False)]
    lone = write_store(utterances, tmp_path / "lone")
    config = CompareConfig(config=str(config_file(lone, tmp_path)), output=str(tmp_path / "out"), backbones=["none"])
    config.dialogue_decoder = True
    with pytest.raises(UserError, match="had no dialogues: no p0 for the dialogue decoder"):
        run(config)
    config_file(store, tmp_path, tasks=["sentiment"])
    with pytest.raises(UserError, match="no task has classes to decode"):
        run(config)


def test_the_dialogue_decoder_has_a_table_of_its_gain(store: Path, tmp_path: Path) -> None:
    config = CompareConfig(config=str(config_file(store, tmp_path)), output=str(tmp_path / "out"), resamples=100)
    config.backbones, config.adapters, config.dialogue_decoder = ["none"], ["gated_projector"], True
    text = run(config)
    assert "### Gain of the dialogue decoder\n\n| system | emotion en, weighted_f1 (n=16)" in text
    result = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    means = {(r["condition"], r["language"]): r["cell"]["mean"] for r in result["rows"] if r["task"] == "emotion"}
    assert [g["language"] for g in result["decoder_gains"]] == ["en", "zh", "all"]
    for gain in result["decoder_gains"]:
        expected = means["dialogue decoder", gain["language"]] - means["as is", gain["language"]]
        assert gain["difference"] == pytest.approx(expected)
        assert gain["interval"][0] <= gain["difference"] <= gain["interval"][1]
        assert 0 < gain["p_value"]["value"] <= 1


def left(config: CompareConfig, caplog: pytest.LogCaptureFixture) -> tuple[list[str], dict[str, str]]:
    """The ablations that are kept of a plan, and why the others are not."""
    systems = plan_systems(config)
    configs = {s.name: run_config(base_config(config, s.adapter), s, 1, Path("unused")) for s in systems}
    prepared = prepare_data(configs[systems[0].name].data, with_prompts=False)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        kept = [s.ablation for s in drop_ineffective_ablations(config, systems, configs, prepared)]
    why = {s.ablation: m for s in systems for m in caplog.messages if m.startswith(f"{s.name} is left out: ")}
    assert {*kept, *why} == {s.ablation for s in systems}
    return kept, why


@pytest.mark.parametrize("name", sorted(adapter_names()))
def test_where_all_modalities_are_there_every_row_of_the_paper_is_run(
    store: Path, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = CompareConfig(config=str(config_file(store, tmp_path)), ablations=["paper"], adapters=[name])
    config.backbones = ["not/loaded"]
    kept, why = left(config, caplog)
    assert why == {}
    assert kept == [s.ablation for s in plan_systems(config)]


@pytest.mark.parametrize(
    ("name", "expected", "same", "impossible"),
    [
        ("lpgnet", ["full", "w/o FFN", "w/o dual gate", "w/o distillation"], ["w/o inter", "w/o audio"], ["w/o intra"]),
        ("lsgmer", ["full", "w/o LSMA", "w/o JOO", "w/o LSMA and JOO", "w/o moving average"], ["w/o dynamic fusion"], []),
        ("gia_mic", ["full", "w/o MSR", "w/o MIR"], ["w/o MIC", "w/o attention gate"], []),
        ("gated_xlstm", ["full", "w/o interlocutor", "w/o gates"], ["text only"], ["audio only", "w/o text"]),
    ],
)
def test_rows_that_change_nothing_or_cannot_be_built_on_text_alone_are_left_out(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    expected: list[str],
    same: list[str],
    impossible: list[str],
) -> None:
    from dataclasses import replace

    from llm_mer.data.store import write_store

    utterances = [
        replace(u, text_features=u.audio_features, audio_features=None, vision_features=None)
        for split in ("train", "valid", "test")
        for u in make_utterances(split, 12)
    ]
    data = write_store(utterances, tmp_path / "text")
    config = CompareConfig(config=str(config_file(data, tmp_path)), ablations=["paper"], adapters=[name])
    config.backbones = ["none"]
    kept, why = left(config, caplog)
    assert kept == expected
    assert {"w/o audio", "w/o vision", "text only", *same} <= {a for a, w in why.items() if w.endswith(f"as {name} (none)")}
    assert {"w/o text", "audio only", "vision only", *impossible} <= {a for a, w in why.items() if "cannot be built: " in w}


def test_a_row_that_repeats_another_row_or_has_no_such_loss_is_left_out(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = CompareConfig(config=str(config_file(store, tmp_path)), adapters=["egmf"], backbones=["none"])
    config.ablations = ["paper", "egmf:gating=uniform", "*:loss_weights=mic=0", "egmf:lora_r=0", "egmf:weight=1"]
    with pytest.raises(UserError, match="no option weight, nor have the model and the data"):
        plan_systems(config)
    config.ablations.pop()
    kept, why = left(config, caplog)  # without a backbone there are no tokens to repeat, no LoRA and no text
    assert kept == ["full", "w/o E1", "w/o E2", "w/o E3", "w/o gating", "w/o context gate", "w/o audio", "w/o vision"]
    assert why["audio only"].endswith("the same as egmf w/o vision (none)")
    assert why["gating=uniform"].endswith("the same as egmf w/o gating (none)")
    assert why["lora_r=0"].endswith("the same as egmf (none)")
    assert "has no loss ['mic']" in why["loss_weights=mic=0"]


def test_the_ablations_of_lora_are_its_sharings_and_none_and_need_a_backbone() -> None:
    systems = plan_systems(CompareConfig(config="x", ablations=["lora"]))
    assert [s.options for s in systems] == [
        {},
        {"lora_sharing": "per_language"},
        {"lora_sharing": "shared_and_per_language"},
        {"lora_r": "0"},
    ]
    assert len(plan_systems(CompareConfig(config="x", ablations=["lora"], backbones=["none"]))) == 1


def test_a_prompt_that_asks_none_of_the_tasks_is_told_before_any_training(
    store: Path, tmp_path: Path, backbones: dict[str, Path], quick: list[str]
) -> None:
    config = CompareConfig(
        config=str(config_file(store, tmp_path)), ablations=["*:prompts=index"], output=str(tmp_path / "o")
    )
    config.backbones = [str(backbones["llama"])]
    with pytest.raises(UserError, match="no prompt for regression task 'sentiment'"):
        run(config)
    assert quick == []


def test_an_ablation_may_name_an_option_of_the_model(store: Path, tmp_path: Path, backbones: dict[str, Path]) -> None:
    from llm_mer.training.setup import build_trainer

    config = CompareConfig(config=str(config_file(store, tmp_path)), ablations=["egmf:lora_r=0"])
    config.backbones = [str(backbones["llama"])]
    trainable = []
    for system in plan_systems(config):
        trainer = build_trainer(run_config(base_config(config, system.adapter), system, 5, tmp_path / "run"))
        trainable.append({n for n, p in trainer.model.named_parameters() if p.requires_grad and "lora_" in n})
    assert trainable[0]
    assert not trainable[1]


def test_a_condition_that_a_full_row_cannot_have_is_told_before_any_training_and_an_ablation_does_without(
    store: Path, tmp_path: Path, quick: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = CompareConfig(config=str(config_file(store, tmp_path)), output=str(tmp_path / "out"), backbones=["none"])
    config.conditions = ["without:text"]
    with pytest.raises(UserError, match="reads audio, vision, not text"):
        run(config)
    assert quick == []
    config.conditions = ["without:audio", "shuffle:vision"]
    row = next(s for s in plan_systems(CompareConfig(config="x", ablations=["paper"])) if s.ablation == "w/o audio")
    assert list(conditions_of(config, row, ["vision"])) == ["vision shuffled"]
    assert "without:audio" in caplog.text


def test_a_kept_model_is_without_what_only_training_needs(store: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    config = CompareConfig(config=str(config_file(store, tmp_path)), output=str(tmp_path / "out"), resamples=20)
    config.backbones, config.adapters, config.keep_models = ["none"], ["lpgnet"], True
    run(config)
    with safe_open(str(tmp_path / "out" / "lpgnet-none-full-1111" / "model.safetensors"), "pt") as weights:
        names = list(weights.keys())
    assert names
    assert not [name for name in names if "students" in name]


def test_gates_on_conflict_names_gia_mics_gates_in_their_order_and_leaves_out_those_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gates_on_conflict

    lines = []
    for tag in ("emotional_words", "conflict"):
        for index in range(3):  # text→vision is column 4; the second utterance lacks audio, columns 2 and 3
            used = [1.0, 1.0, float(index != 1), float(index != 1), 1.0, 1.0]
            gates = {"gate_mean": [0.1, 0.2, 0.3 if index != 1 else 0.9, 0.4, 0.5, 0.6], "gate_used": used}
            lines.append(
                {"id": f"{tag}-{index}", "task": "emotion", "condition": "as is", "tags": [tag], "diagnostics": gates}
            )
    for name, modalities in (("three", ("text", "audio", "vision")), ("two", ("text", "vision"))):
        (tmp_path / name).mkdir()
        gates_in_order = build_adapter(
            "gia_mic", GIAMICConfig(feature_sizes=dict.fromkeys(modalities, 4), num_classes=3, backbone_size=8)
        ).diagnostic_info()
        described = {"diagnostics": [dataclasses.asdict(info) for info in gates_in_order]}
        (tmp_path / name / "run.json").write_text(json.dumps(described), encoding="utf-8")
        if name == "two":
            for line in lines:
                line["diagnostics"] = {"gate_mean": [0.1, 0.2], "gate_used": [1.0, 0.0]}
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "predictions.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["gates_on_conflict.py", "--runs", str(tmp_path), "--quick"])
    gates_on_conflict.main()
    found = [[cell.strip() for cell in line.split("|")[1:6]] for line in capsys.readouterr().out.splitlines()[2:9]]
    assert [(row[0], *row[2:]) for row in found] == [
        ("three", "vision→audio", "3 / 3", "0.100"),
        ("three", "vision→text", "3 / 3", "0.200"),
        ("three", "audio→vision", "2 / 2", "0.300"),
        ("three", "audio→text", "2 / 2", "0.400"),
        ("three", "text→vision", "3 / 3", "0.500"),
        ("three", "text→audio", "3 / 3", "0.600"),
        ("two", "vision→text", "3 / 3", "0.100"),
    ]


PAPERS = sorted((ROOT / "configs" / "papers").glob("*.yaml"))


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_papers_recipe_parses_and_says_where_it_differs(path: Path) -> None:
    from llm_mer.training.parsing import parse_arguments

    config = parse_arguments(["--config", str(path)])
    model, training, options = config.model, config.training, config.adapter_options
    assert model.adapter == path.stem
    head = "".join(line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines(True) if line[0] == "#")
    assert "Different or ours:" in head
    assert "docs/results.md" not in head
    named = {"constant": "the rate is constant", "cosine": "10 % warm-up then cosine"}[str(training.lr_scheduler_type.value)]
    assert named in head.replace("\n", " ")
    assert options["use_vision"] == (path.stem == "gia_mic")
    if path.stem == "lpgnet":
        assert (options["norm"], training.weight_decay, training.warmup_steps) == ("batch", 0.0, 0)


def test_one_vs_all_accuracy_can_be_shown(store: Path, tmp_path: Path, quick: list[str]) -> None:
    from llm_mer.data.store import write_store

    labels = [{"name": n, "en": n, "zh": n} for n in ("joy", "anger", "surprise", "sadness")]
    task = {"four": {"kind": "classification", "target": "emotion", "metrics": "iemocap", "labels": labels}}
    (tmp_path / "four.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    data = write_store([u for s in ("train", "valid", "test") for u in make_utterances(s, 24)], tmp_path / "store")
    path = config_file(data, tmp_path, tasks=[str(tmp_path / "four.yaml")])
    config = CompareConfig(config=str(path), output=str(tmp_path / "out"), backbones=["none"], resamples=20)
    config.metrics = ["ova_accuracy"]
    assert "four en, ova_accuracy" in run(config)


def test_a_split_or_metric_that_is_none_is_told_before_any_training(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llm_mer.training.run

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a training was begun")

    monkeypatch.setattr(llm_mer.training.run, "build_trainer", never)
    config = CompareConfig(config=str(config_file(store, tmp_path)), output=str(tmp_path / "out"), split="tset")
    with pytest.raises(UserError, match=r"no split 'tset'; it holds .*test"):
        run(config)
    config.metrics = ["f2"]
    with pytest.raises(UserError, match="metrics: f2 is unknown; choose from accuracy"):
        run(config)


def test_every_system_of_a_seed_sees_the_data_in_the_same_order(store: Path, tmp_path: Path) -> None:
    from llm_mer.training.setup import build_trainer

    config = CompareConfig(config=str(config_file(store, tmp_path)), adapters=["egmf", "gia_mic"], backbones=["none"])
    orders = []
    for system in plan_systems(config):
        trainer = build_trainer(run_config(base_config(config, system.adapter), system, 5, tmp_path / system.adapter))
        orders.append([batch["class_targets"].tolist() for batch in trainer.get_train_dataloader()])
    assert orders[0] == orders[1]


def test_runs_of_one_dtype_that_were_computed_in_two_precisions_are_not_compared() -> None:
    def answers(precision: str | None) -> dict[str, list[Prediction]]:
        return {"as is": [Prediction("a", "emotion", "en", "joy", precision=precision)]}

    def runs(*dtypes: str) -> dict[str, list[Any]]:
        return {
            name: [SimpleNamespace(seed=1, options={"model": {"dtype": dtype}})]
            for name, dtype in zip("abc", dtypes, strict=False)
        }

    loaded = {"a": [answers("float32")], "b": [answers("bfloat16")], "c": [answers(None)]}
    with pytest.raises(
        UserError, match=r"b, seed 1 was computed in bfloat16, a, seed 1 in float32, .* --overrides dtype=float32"
    ):
        check_precision(runs("auto", "auto", "auto"), loaded)
    check_precision(runs("auto", "bfloat16", "auto"), loaded)  # a system of its own, and an adapter alone


def test_a_system_that_no_score_is_read_of_has_an_undefined_cell_and_not_a_number(recwarn: Any) -> None:
    def answers(values: Sequence[float | None]) -> dict[str, Prediction]:
        made = [Prediction(f"u{i}", "sentiment", "en", value, truth=1.0) for i, value in enumerate(values)]  # type: ignore[arg-type]
        return {p.id: p for p in made}

    chosen = {
        "whole": [answers([1.0, 2.0]), answers([1.0, 0.0])],
        "never both": [answers([1.0, None]), answers([None, 0.5])],
        "unread": [answers([None, None]), answers([1.0, 1.0])],
    }
    shown = {}
    for system in chosen:
        cell, _, _ = score_cell(chosen, system, "whole", get_task("sentiment"), "mae", 20)
        shown[system] = format_cell(cell, 2)
    assert shown["whole"].startswith("0.500 ± 0.000 [")
    assert shown["never both"] == "0.250 ± 0.354 [undefined]"
    assert shown["unread"] == "undefined"
    assert not recwarn.list
