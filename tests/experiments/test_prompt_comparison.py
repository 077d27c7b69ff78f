"""prompts compare: what a variant is, that an order of labels changes the prompt and nothing else, and the table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_mer.cli.prompts_compare import run
from llm_mer.data.dataset import MerDataset
from llm_mer.data.store import UtteranceStore
from llm_mer.errors import UserError
from llm_mer.evaluation.p_values import PValue
from llm_mer.evaluation.rows import load_predictions
from llm_mer.experiments.options import CompareConfig, CrosslingualConfig
from llm_mer.experiments.prompt_comparison import (
    OWN_PROMPT,
    PromptComparison,
    PromptComparisonConfig,
    Variant,
    build_variants,
    compare_variants,
    markdown,
    measure_sensitivity,
    predict,
)
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.templates import PromptTemplate, load_prompts, prompt_folder
from llm_mer.reporting.prompt_figure import draw_prompt_scores


def template(task: str, **changes: Any) -> PromptTemplate:
    values: dict[str, Any] = {"name": "t", "language": "en", "kind": "classification", "answer": "word", "task": task}
    return PromptTemplate(**{**values, **changes})


def test_the_checkpoints_own_prompt_is_no_variant_of_itself_and_lists_get_other_orders() -> None:
    own = load_prompts("short")
    config = PromptComparisonConfig(prompts=["short", "notext", "instruct"], label_orders=2)
    found = build_variants(config, own, [get_task("emotion")])
    assert [v.name for v in found[:3]] == [OWN_PROMPT, "notext", "instruct"]
    assert len(found) == 5
    for variant in found[3:]:
        assert variant.reference == "instruct"
        assert sorted(variant.order or ()) == list(range(6))
        assert variant.order != tuple(range(6))
        assert all("{labels}" in t.task or "{indexed_labels}" in t.task for t in variant.templates)


def test_two_labels_have_one_other_order() -> None:
    found = build_variants(PromptComparisonConfig(prompts=["instruct"], label_orders=3), [], [get_task("polarity")])
    assert [variant.order for variant in found if variant.order is not None] == [(1, 0)]


def test_two_prompts_of_one_name_and_a_negative_number_of_orders_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "instruct.yaml"
    copy.write_bytes((prompt_folder() / "instruct_en_classification.yaml").read_bytes())
    with pytest.raises(UserError, match="--prompts: two are called instruct"):
        build_variants(PromptComparisonConfig(prompts=["instruct", str(copy)]), [], [])
    with pytest.raises(UserError, match="label_orders -1: it must be at least 0"):
        build_variants(PromptComparisonConfig(label_orders=-1), [], [])


def test_an_order_of_labels_asks_what_the_same_list_written_out_asks(trained: Path, store: Path) -> None:
    pipeline = MerPipeline.from_pretrained(trained)
    emotion = next(task for task in pipeline.tasks if task.name == "emotion")
    order = tuple(reversed(range(emotion.num_classes)))
    utterances = [u for u in UtteranceStore.open(store).split("test") if u.language == "en"][:6]
    permuted = Variant("permuted", (template("Choose: {labels}.\n{transcript}\nEmotion:"),), order)
    written = template("Choose: " + ", ".join(reversed(emotion.words("en"))) + ".\n{transcript}\nEmotion:")
    one = predict(pipeline, permuted, MerDataset(utterances, [permuted.task(emotion)]), False, False)
    two = predict(pipeline, Variant("written", (written,)), MerDataset(utterances, [emotion]), False, False)
    for a, b in zip(one, two, strict=True):
        assert a.value == b.value
        assert a.truth == b.truth
        np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=1e-5)
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_the_index_of_an_answer_follows_the_order_that_was_shown(trained: Path, store: Path) -> None:
    pipeline = MerPipeline.from_pretrained(trained)
    emotion = next(task for task in pipeline.tasks if task.name == "emotion")
    order = (*range(1, emotion.num_classes), 0)
    asked = dataclasses.replace(template("{indexed_labels}\n{transcript}\nNumber:"), answer="index")
    variant = Variant("moved", (asked,), order)
    utterances = [u for u in UtteranceStore.open(store).split("test") if u.language == "en"][:4]
    moved = variant.task(emotion)
    assert moved.answers("en", "index") == emotion.answers("en", "index")
    assert moved.label_names == tuple(emotion.label_names[place] for place in order)
    for prediction in predict(pipeline, variant, MerDataset(utterances, [moved]), False, False):
        best = int(np.argmax(prediction.log_probabilities))
        assert emotion.label_names[best] == prediction.value


def hand_made(values: dict[str, list[str]], truth: list[str]) -> dict[str, list[Prediction]]:
    return {
        name: [
            Prediction(str(i), "emotion", "en", value, truth=true)
            for i, (value, true) in enumerate(zip(answers, truth, strict=True))
        ]
        for name, answers in values.items()
    }


def test_rows_count_changed_answers_against_their_reference_and_adjust_p_for_their_number() -> None:
    truth = ["joy", "anger"] * 30
    right, wrong = truth, ["fear"] * 60
    half = truth[:30] + wrong[30:]
    answers = hand_made({OWN_PROMPT: right, "same": right, "wrong": wrong, "wrong, labels 1 0": half}, truth)
    references = {
        OWN_PROMPT: OWN_PROMPT,
        "same": OWN_PROMPT,
        "wrong": OWN_PROMPT,
        "wrong, labels 1 0": "wrong",
    }
    rows = {r.variant: r for r in compare_variants(answers, references, get_task("emotion"), "en", 200, 0)}
    assert [rows[name].score for name in answers] == [1.0, 1.0, 0.0, 0.5]
    assert rows[OWN_PROMPT].p_value is None
    assert (rows["same"].difference, rows["same"].changed) == (0.0, 0.0)
    assert (rows["wrong"].difference, rows["wrong"].changed) == (-1.0, 1.0)
    assert (rows["wrong, labels 1 0"].difference, rows["wrong, labels 1 0"].changed) == (0.5, 0.5)
    least = 2 / 201  # the smallest p that 200 resamples give; three are adjusted: p · 3 / rank, the same for ties
    assert rows["wrong"].p_value == PValue(least * 3 / 2, is_bound=True)
    assert rows["same"].p_value == PValue(1.0)


def test_sensitivity_is_the_spread_of_scores_and_the_share_of_unstable_answers() -> None:
    truth = ["joy"] * 10
    answers = hand_made({OWN_PROMPT: truth, "b": ["joy"] * 7 + ["fear"] * 3, "c": ["fear"] + ["joy"] * 9}, truth)
    task = get_task("emotion")
    rows = compare_variants(answers, dict.fromkeys(answers, OWN_PROMPT), task, "en", 20, 0)
    found = measure_sensitivity(answers, rows, task, "en")
    assert found.spread == pytest.approx(0.3)
    assert found.unstable == pytest.approx(0.4)
    assert found.deviation is None


def test_a_checkpoint_is_asked_in_every_prompt_and_all_is_written(trained: Path, store: Path, tmp_path: Path) -> None:
    config = PromptComparisonConfig(
        checkpoint=str(trained),
        data=str(store),
        prompts=["notext", "index"],
        label_orders=1,
        output=str(tmp_path / "out"),
        resamples=50,
        limit=12,
        generate=True,
    )
    text = run(config)
    written = json.loads((tmp_path / "out" / "prompts.json").read_text(encoding="utf-8"))
    rows = {(r["variant"], r["task"], r["language"]): r for r in written["rows"]}
    assert {key[0] for key in rows if key[1] == "sentiment"} == {OWN_PROMPT, "notext"}
    assert len({key[0] for key in rows if key[1] == "emotion"}) == 4
    assert all(0 <= r["unparseable"] <= 1 for r in rows.values())
    by_variant = load_predictions(tmp_path / "out" / "predictions.jsonl")
    for (variant, task, language), row in rows.items():
        own = [p for p in by_variant[variant] if (p.task, p.language) == (task, language)]
        assert row["n"] == len(own)
        if task == "emotion":
            assert row["score"] == pytest.approx(np.mean([p.value == p.truth for p in own]))
    assert "### emotion, zh: accuracy (n=" in text
    assert (tmp_path / "out" / "prompts.png").read_bytes()[:4] == b"\x89PNG"


def test_a_table_and_a_figure_need_no_sensitivity() -> None:
    truth = ["joy", "fear"] * 4
    rows = compare_variants(
        hand_made({OWN_PROMPT: truth}, truth),
        {OWN_PROMPT: OWN_PROMPT},
        get_task("emotion"),
        "en",
        20,
        0,
    )
    comparison = PromptComparison("c", "d", "test", rows, [])
    assert "Sensitivity" not in markdown(comparison)
    assert len(draw_prompt_scores(comparison).axes) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give either --checkpoint, evaluated with every prompt, or --config"),
        ({"checkpoint": "a", "config": "b"}, "give either --checkpoint"),
        ({"checkpoint": "TRAINED"}, "--data: name the store"),
        ({"checkpoint": "TRAINED", "data": "STORE", "tasks": ["meld"]}, "not trained on task 'meld'"),
        ({"checkpoint": "TRAINED", "data": "STORE", "prompts": ["nope"]}, "'nope' is no file, folder or style"),
        ({"config": "x.yaml", "tasks": ["emotion"]}, "--tasks: with --config the tasks are those of the YAML"),
        ({"config": "x.yaml", "languages": ["en", "zh"]}, "--languages: with --config name one"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(changes: dict[str, Any], message: str, trained: Path, store: Path) -> None:
    places = {"TRAINED": str(trained), "STORE": str(store)}
    values = {k: places.get(v, v) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(UserError, match=message):
        run(PromptComparisonConfig(**values))


def test_with_a_training_yaml_a_model_is_trained_with_each_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_mer.experiments.comparison import compare

    asked = []
    monkeypatch.setattr(compare, "run", lambda config: asked.append(config) or "table")
    text = run(PromptComparisonConfig(config="x.yaml", prompts=["short", "notext"], seeds=[1, 2], languages=["en"]))
    assert text == "table"
    (config,) = asked
    assert config.ablations == ["*:prompts=short", "*:prompts=notext"]
    assert (config.seeds, config.overrides) == ([1, 2], ["languages=en"])


@pytest.mark.parametrize("options", [CompareConfig, CrosslingualConfig, PromptComparisonConfig])
def test_no_resample_is_refused_before_anything_is_trained(options: Any) -> None:
    with pytest.raises(UserError, match="--resamples 0: it must be at least 1"):
        options(resamples=0)


@pytest.mark.parametrize("options", [CompareConfig, CrosslingualConfig, PromptComparisonConfig])
def test_a_seed_given_twice_is_refused(options: Any) -> None:
    with pytest.raises(UserError, match="--seeds 1 2 1 names a seed twice; their spread would be too small"):
        options(seeds=[1, 2, 1])


def test_a_seed_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match="--seed -1: it must be at least 0"):
        PromptComparisonConfig(seed=-1)


def test_temperatures_of_one_prompt_are_not_taken_for_the_others(copied: Path, store: Path, tmp_path: Path) -> None:
    from llm_mer.evaluation.calibrate import calibrate
    from llm_mer.evaluation.options import CalibrateConfig

    calibrate(CalibrateConfig(checkpoint=str(copied), data=str(store)))
    values: dict[str, Any] = {
        "checkpoint": str(copied),
        "data": str(store),
        "prompts": ["notext"],
        "resamples": 5,
        "limit": 4,
    }
    run(PromptComparisonConfig(**values, output=str(tmp_path / "out")))
    found = [p for answers in load_predictions(tmp_path / "out" / "predictions.jsonl").values() for p in answers]
    assert {p.temperature for p in found} == {None}
    assert {p.temperature is None for p in MerPipeline.from_pretrained(copied)(text="hello")} == {False}


def test_a_comparison_takes_the_place_of_another_as_a_whole_and_keeps_what_is_not_its_own(
    trained: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    config = PromptComparisonConfig(
        str(trained), data=str(store), output=str(folder), prompts=["short"], label_orders=0, limit=2, resamples=5
    )
    run(config)
    names = ["predictions.jsonl", "prompts.json", "prompts.md", "prompts.png"]
    (folder / "notes.txt").write_text("mine")
    before = {name: (folder / name).read_bytes() for name in names}
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "notes.txt"])

    def fail(*_: Any) -> None:
        assert {name: (folder / name).read_bytes() for name in names} == before
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("llm_mer.reporting.prompt_figure.draw_prompt_scores", fail)  # the last of the four
        with pytest.raises(UserError, match="No space left"):
            run(PromptComparisonConfig(**{**vars(config), "prompts": ["notext"]}))
    assert {name: (folder / name).read_bytes() for name in names} == before
    run(PromptComparisonConfig(**{**vars(config), "prompts": ["notext"]}))
    assert "notext" in (folder / "prompts.md").read_text()
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "notes.txt"])
