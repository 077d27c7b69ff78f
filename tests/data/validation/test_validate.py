"""`llm-mer validate`: each check finds the fault it is for and a clean data set has none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_utterances
from shared_files import shared_data

from llm_mer.cli.main import main
from llm_mer.data.schema import Utterance
from llm_mer.data.store import STORE_FILE, store_info_digest, write_store
from llm_mer.data.validation.checks import Inspection
from llm_mer.data.validation.findings import ADVICE, Finding, ValidationReport
from llm_mer.data.validation.validate import ValidateConfig, check_utterances, validate
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task


def clean() -> list[Utterance]:
    """Dialogues, speakers and sentences of a split of their own, sound features, labels of built-in tasks."""
    found = []
    for split, count in (("train", 96), ("valid", 32), ("test", 32)):
        for utterance in make_utterances(split, count):
            changes = {"text": f"{utterance.text} {split} {utterance.id}", "speaker": f"{split}-{utterance.speaker}"}
            found.append(dataclasses.replace(utterance, **changes))
    return found


def report(utterances: Any, tasks: list[str] | None = None, **options: Any) -> ValidationReport:
    chosen = None if tasks is None else [get_task(name) for name in tasks]
    return check_utterances(utterances, "here", Inspection(chosen, **options))


def faults(found: ValidationReport) -> list[Finding]:
    return [finding for finding in found.findings if finding.severity != "info"]


def change(place: int, **values: Any) -> list[Utterance]:
    found = clean()
    found[place] = dataclasses.replace(found[place], **values)
    return found


def test_a_clean_data_set_has_no_fault_and_says_what_it_is() -> None:
    found = report(clean())
    assert faults(found) == []
    assert found.exit_code == 0
    assert found.utterances == {"train": 96, "valid": 32, "test": 32}
    info = {(f.check, f.split): f for f in found.findings}
    assert {f.check for f in found.findings} == {"checked as", "majority"}
    assert sorted(text for f in found.findings if f.check == "checked as" for text in f.first) == [
        "emotion: emotion",
        "sentiment: sentiment",
    ]
    labels = [u.labels["emotion"] for u in clean() if u.split == "valid"]
    most = max(set(labels), key=labels.count)
    assert info["majority", "valid"].first == [f"emotion: {most} {labels.count(most) / 32:.1%}"]
    assert info["majority", "valid"].count == 32


def with_value(value: float) -> np.ndarray:
    features = np.ones((3, 6), dtype=np.float32) * np.arange(6, dtype=np.float32)
    features[1, 2] = value
    return features


FAULTS: dict[str, tuple[Callable[[], list[Utterance]], str, str, str, int, str]] = {
    "NaN": (lambda: change(3, audio_features=with_value(np.nan)), "error", "not finite", "train", 1, "train-003 (audio)"),
    "infinity": (lambda: change(3, audio_features=with_value(np.inf)), "error", "not finite", "train", 1, "train-003"),
    "too large for float32": (
        lambda: change(3, audio_features=with_value(0).astype(np.float64) + 1e300),
        "error",
        "not finite",
        "train",
        1,
        "train-003",
    ),
    "no step": (lambda: change(100, vision_features=np.zeros((0, 5))), "error", "shape", "valid", 1, "valid-004 (vision"),
    "a flat vector": (lambda: change(5, vision_features=np.ones(5)), "error", "shape", "train", 1, "train-005 (vision (5,)"),
    "another size": (
        lambda: change(140, audio_features=np.ones((2, 7))),
        "error",
        "feature size",
        "test",
        1,
        "test-012 (audio 7, not 6)",
    ),
    "a label outside": (
        lambda: change(4, labels={"emotion": "bored"}),
        "error",
        "label",
        "train",
        1,
        "train-004 (bored)",
    ),
    "a score out of range": (
        lambda: change(130, labels={"sentiment": 7.5}),
        "error",
        "label",
        "test",
        1,
        "test-002 (7.5)",
    ),
    "an id twice": (lambda: change(7, id="train-003"), "error", "duplicate id", "train", 1, "train-003"),
    "an id in two splits": (lambda: change(100, id="train-003"), "error", "duplicate id", "train+valid", 1, "train-003"),
    "a copy in another split": (
        lambda: change(150, audio_features=clean()[9].audio_features, vision_features=clean()[9].vision_features),
        "error",
        "same utterance",
        "train+test",
        1,
        "test-022 = train-009",
    ),
    "a file in another split": (
        lambda: [dataclasses.replace(u, audio="a.wav" if i in (2, 100) else f"{u.id}.wav") for i, u in enumerate(clean())],
        "error",
        "same utterance",
        "train+valid",
        1,
        "valid-004 = train-002",
    ),
    "a dialogue in training and test": (
        lambda: change(150, dialogue_id="train-en-0", turn=70, language="en"),
        "error",
        "shared dialogue",
        "train+test",
        1,
        "train-en-0",
    ),
    "a dialogue in validation and test": (
        lambda: change(150, dialogue_id="valid-en-0", turn=70, language="en"),
        "warning",
        "shared dialogue",
        "valid+test",
        1,
        "valid-en-0",
    ),
    "a speaker in two splits": (
        lambda: change(150, speaker="train-A"),
        "warning",
        "shared speaker",
        "train+test",
        1,
        "train-A",
    ),
    "a table's missing value": (
        lambda: change(11, text="NaN"),
        "warning",
        "placeholder",
        "train",
        1,
        "train-011 (text 'NaN')",
    ),
    "a speaker that is none": (
        lambda: change(11, speaker="None"),
        "warning",
        "placeholder",
        "train",
        1,
        "train-011 (speaker 'None')",
    ),
    "Chinese said to be English": (
        lambda: change(10, text="火车九点开"),
        "warning",
        "other language",
        "train",
        1,
        "train-010 (en: 火车九点开)",
    ),
    "an empty text": (lambda: change(150, text="  "), "warning", "empty text", "test", 1, "test-022"),
    "nothing at all": (
        lambda: change(150, text="", audio_features=None, vision_features=None),
        "error",
        "no modality",
        "test",
        1,
        "test-022",
    ),
    "mojibake": (lambda: change(11, text="donâ€™t"), "warning", "encoding", "train", 1, "train-011 (donâ€™t)"),
    "a turn missing": (lambda: change(11, turn=None), "error", "turn", "train", 1, "train-011 (none)"),
    "a turn twice": (lambda: change(12, turn=1), "warning", "turn", "train", 1, "train-014 (1 again)"),
    "zeros for a missing face": (
        lambda: change(11, vision_features=np.zeros((3, 5))),
        "warning",
        "zero features",
        "train",
        1,
        "train-011 (vision)",
    ),
    "a split of another name": (
        lambda: change(11, split="dev", dialogue_id=None, speaker=None),
        "error",
        "split or language",
        "dev",
        1,
        "train-011 (dev, zh)",
    ),
    "a class only in the test": (
        lambda: change(150, labels={"emotion": "fear"}),
        "warning",
        "unseen class",
        "test",
        1,
        "fear",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_the_only_one_found(fault: str) -> None:
    build, severity, check, split, count, first = FAULTS[fault]
    found = faults(report(build()))
    assert [(f.severity, f.check, f.split, f.count) for f in found] == [(severity, check, split, count)]
    assert found[0].first[0].startswith(first)
    assert found[0].advice == ADVICE[check]


def everywhere(edit: Callable[[Utterance], dict[str, Any]]) -> list[Utterance]:
    return [dataclasses.replace(u, **edit(u)) for u in clean()]


def column(features: np.ndarray, value: float) -> np.ndarray:
    changed = features.copy()
    changed[:, 1] = value
    return changed


def test_a_feature_that_never_changes_in_training_is_named() -> None:
    data = everywhere(lambda u: {"audio_features": column(u.audio_features, 0.1)} if u.split == "train" else {})
    (found,) = faults(report(data, feature_names={"audio": ["a", "pitch"]}))
    assert (found.severity, found.check, found.split, found.count) == ("warning", "constant", "train", 1)
    assert found.first == ["audio[1] pitch"]


def test_a_modality_that_is_zero_throughout_training_is_an_error() -> None:
    found = faults(report(everywhere(lambda u: {"vision_features": np.zeros_like(u.vision_features)})))
    assert [(f.severity, f.check, f.split) for f in found] == [
        ("error", "zero features", "train"),
        ("warning", "zero features", "train"),
        ("warning", "zero features", "valid"),
        ("warning", "zero features", "test"),
    ]
    assert found[0].first == ["vision: every feature of every utterance"]


def test_a_feature_that_is_the_class_is_a_leak() -> None:
    code = {"joy": 3.0, "anger": 1.0, "surprise": 0.0, "sadness": 2.0}
    data = everywhere(lambda u: {"audio_features": column(u.audio_features, code[u.labels["emotion"]])})
    found = faults(report(data))
    assert {(f.severity, f.check, f.split, f.count) for f in found} == {("error", "leak", "train", 1)}
    assert {text.split(" → ")[0] for f in found for text in f.first} == {"audio[1]"}
    assert any(text.endswith("AUC=1.000") for f in found for text in f.first)


def test_a_feature_that_is_nearly_the_score_is_a_leak_of_lower_severity() -> None:
    random = np.random.default_rng(3)
    data = everywhere(
        lambda u: {"vision_features": column(u.vision_features, float(u.labels["sentiment"] + 0.2 * random.normal()))}
    )
    found = [f for f in faults(report(data, ["sentiment"])) if f.check == "leak"]
    assert [(f.severity, f.split, f.count) for f in found] == [("warning", "train", 1)]
    assert found[0].first[0].startswith("vision[1] → sentiment r=0.9")


def test_the_number_of_steps_may_leak_too() -> None:
    data = everywhere(
        lambda u: {
            "audio_features": np.random.default_rng(int(u.id[-3:])).normal(size=(2 + (u.labels["emotion"] == "joy"), 6)),
            "labels": {"emotion": u.labels["emotion"]},
        }
    )
    leaks = [f for f in faults(report(data)) if f.check == "leak"]
    assert [(f.severity, f.first) for f in leaks] == [("error", ["audio: number of steps → joy AUC=1.000"])]


def test_durations_are_compared_where_rates_are_known() -> None:
    data = change(20, audio_features=np.random.default_rng(0).normal(size=(60, 6)))
    assert faults(report(data)) == []
    (found,) = faults(report(data, rates={"audio": 12.5, "vision": 6.0}))
    assert (found.severity, found.check, found.split, found.count) == ("warning", "duration", "train", 1)
    assert found.first[0].startswith("train-020 (")
    assert "4.8 s" in found.first[0]


def test_a_store_is_held_to_the_size_it_claims_and_its_rates(tmp_path: Path) -> None:
    description = {"features": {"audio": "egemaps", "vision": "hog_flow", "audio_rate": 12.5, "vision_fps": 6.0}}
    data = change(20, audio_features=np.random.default_rng(0).normal(size=(60, 6)))
    store = write_store(data, tmp_path / "store", description=description)
    assert [f.check for f in faults(validate(ValidateConfig(str(store))))] == ["duration"]
    info = json.loads((store / STORE_FILE).read_text())
    info["feature_sizes"]["audio"] = 7
    info["sha256"] = store_info_digest(info)
    (store / STORE_FILE).write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"audio_features has \d+ values; store.json says 7 a step"):
        validate(ValidateConfig(str(store)))


def test_a_recording_in_two_languages_of_one_split_is_no_fault() -> None:
    other = {"en": "zh", "zh": "en"}
    twice = [dataclasses.replace(u, id=f"{u.id}-other", language=other[u.language], text=None) for u in clean()]
    assert faults(report([*clean(), *twice])) == []


def test_the_same_words_in_two_splits_are_told_without_being_a_fault() -> None:
    data = change(150, text=clean()[0].text, language="en")
    found = report(data)
    assert faults(found) == []
    (same,) = [f for f in found.findings if f.check == "same sentence"]
    assert (same.split, same.count, same.first) == ("train+test", 1, ["test-022 = train-000"])


def test_ignored_labels_are_no_error_and_tasks_are_chosen_by_their_labels() -> None:
    names = {"joy": "happy", "anger": "excited", "surprise": "surprise", "sadness": "frustrated"}
    data = everywhere(lambda u: {"labels": {"emotion": names[u.labels["emotion"]]}})
    assert not [f for f in report(data, ["iemocap6"]).findings if f.check == "label"]
    assert not [f for f in report(data).findings if f.check == "label"]
    assert [f.first for f in report(data).findings if f.check == "checked as"] == [["emotion: iemocap4"]]
    wrong = [f for f in report(data, ["emotion"]).findings if f.check == "label"]
    assert sum(f.count for f in wrong) == sum(u.labels["emotion"] != "surprise" for u in data)


def test_labels_of_a_task_of_ones_own_are_not_held_against_the_built_in_ones(tmp_path: Path) -> None:
    data = everywhere(lambda u: {"labels": {"emotion": f"own-{u.labels['emotion']}", "mood": "grey"}})
    found = report(data)
    assert [(f.severity, f.check) for f in faults(found)] == [("warning", "no task")]
    assert [f.first for f in found.findings if f.severity == "info" and f.check == "no task"] == [["mood"]]
    task = tmp_path / "own.yaml"
    names = ", ".join(f"{{name: own-{n}, en: {n}, zh: {n}}}" for n in ("joy", "anger", "surprise", "sadness"))
    task.write_text(f"own: {{kind: classification, target: emotion, labels: [{names}]}}")
    assert faults(report(data, [str(task)])) == []
    assert [(f.check, f.count) for f in faults(report(data, ["polarity"]))] == [("no task", 0)]


def test_missing_splits_are_told() -> None:
    found = report([u for u in clean() if u.split != "valid"])
    assert [(f.severity, f.split) for f in found.findings if f.check == "missing split"] == [("info", "valid")]


def test_reading_that_stops_half_way_is_a_finding_and_what_was_found_stays() -> None:
    def broken() -> Iterator[Utterance]:
        yield from change(3, text=" ")[:50]
        raise UserError("file.csv:51: no column")

    found = faults(report(broken()))
    assert [(f.severity, f.check, f.first) for f in found] == [
        ("error", "unreadable", ["file.csv:51: no column"]),
        ("warning", "empty text", ["train-003"]),
    ]


def test_counts_go_on_where_the_shown_ids_end() -> None:
    found = faults(report(everywhere(lambda u: {"text": ""} if u.split == "train" else {})))
    assert [(f.check, f.count, len(f.first)) for f in found] == [("empty text", 96, 5)]
    assert found[0].first == [f"train-00{i}" for i in range(5)]


@pytest.mark.parametrize(
    ("utterances", "code"),
    [(clean, 0), (FAULTS["a speaker in two splits"][0], 1), (FAULTS["a copy in another split"][0], 2)],
)
def test_the_exit_code_is_the_worst_severity_and_json_holds_the_table(
    tmp_path: Path, utterances: Callable[[], list[Utterance]], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(utterances(), tmp_path / "store")
    assert main(["validate", str(store), "--json", str(tmp_path / "found.json")]) == code
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert content["exit_code"] == code
    assert content["utterances"] == {"train": 96, "valid": 32, "test": 32}
    assert printed.splitlines()[0].split() == ["severity", "check", "split", "count", "first", "what", "to", "do"]
    for finding in content["findings"]:
        assert any(
            line.startswith(finding["severity"]) and finding["check"] in line and str(finding["count"]) in line
            for line in printed.splitlines()
        )


def test_files_are_checked_in_place_and_what_cannot_be_opened_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "clips.jsonl"
    path.write_text('{"id": "a", "split": "train", "text": "hello", "emotion": "joy"}\n')
    assert main(["validate", f"manifest:{path}"]) == 0
    capsys.readouterr()
    nowhere = str(tmp_path / "nowhere" / "found.json")
    for words in ([str(tmp_path)], ["vhs:tape"], ["manifest:gone.jsonl"], [f"manifest:{path}", "--json", nowhere]):
        assert main(["validate", *words]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "code", "found"),
    [
        ("mosi", 1, {("constant", "train", 32), ("leak", "train", 71)}),
        ("casia", 0, set()),
        ("ravdess", 0, set()),
        ("cped", 1, {("shared speaker", "valid+test", 1), ("other language", "test", 7)}),
        (
            "meld",
            1,
            {
                ("shared speaker", "train+valid+test", 21),
                ("shared speaker", "train+test", 48),
                ("shared speaker", "train+valid", 12),
                ("shared speaker", "valid+test", 1),
            },
        ),
    ],
)
def test_real_files(name: str, code: int, found: set[tuple[str, str, int]]) -> None:
    result = validate(ValidateConfig(f"{name}:{shared_data(name)}"))
    assert {(f.check, f.split, f.count) for f in faults(result)} == found
    assert result.exit_code == code
