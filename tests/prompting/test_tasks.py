"""Answers are written and read in both languages; what is no answer is None, never a class."""

import re
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest

from llm_mer.errors import UserError
from llm_mer.prompting.tasks import Task, builtin_tasks, get_task

CLASSES = [task for task in builtin_tasks().values() if task.kind == "classification"]
SCORES = [task for task in builtin_tasks().values() if task.kind == "regression"]
STYLES = {"classification": ("word", "index"), "regression": ("number",)}


def by_name(task: Task) -> str:
    return task.name


# --- the built-in tasks -----------------------------------------------------------------------------------------------


def test_published_label_sets_have_their_fixed_order() -> None:
    assert get_task("meld").label_names == ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
    assert get_task("cherma").words("zh") == ("愤怒", "厌恶", "恐惧", "高兴", "平静", "悲伤", "惊奇")
    assert get_task("cherma").words("en") == ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
    assert get_task("iemocap4").label_names == ("angry", "happy", "sad", "neutral")
    assert get_task("iemocap6").label_names == ("happy", "sad", "neutral", "angry", "excited", "frustrated")
    for name, bounds, metrics in (
        ("mosi", (-3.0, 3.0), "mosi"),
        ("mosei", (-3.0, 3.0), "mosi"),
        ("sims", (-1.0, 1.0), "sims"),
        ("simsv2", (-1.0, 1.0), "sims"),
    ):
        assert (get_task(name).score_range, get_task(name).metrics) == (bounds, metrics)


def test_a_word_means_the_same_in_every_task() -> None:
    meaning: dict[str, str] = {}
    for task in CLASSES:
        for label in task.labels:
            if task.name.startswith("iemocap"):
                continue  # adjectives: happy and joy share 高兴
            assert meaning.setdefault(label.words["zh"], label.words["en"]) == label.words["en"]
    assert meaning["高兴"] == "joy"


@pytest.mark.parametrize("task", CLASSES, ids=by_name)
def test_every_class_answer_is_read_back_as_its_class_in_both_languages(task: Task) -> None:
    for language in ("en", "zh"):
        for style in STYLES[task.kind]:
            answers = [task.answer_text(name, language, style) for name in task.label_names]
            assert answers == list(task.answers(language, style))
            assert len(set(answers)) == task.num_classes
            assert [task.parse(answer, language, style) for answer in answers] == list(range(task.num_classes))


@pytest.mark.parametrize("task", SCORES, ids=by_name)
def test_every_score_answer_is_read_back_as_its_score(task: Task) -> None:
    grid = task.grid()
    assert (grid[0], grid[-1]) == task.score_range
    assert [Decimal(str(b)) - Decimal(str(a)) for a, b in pairwise(grid)] == [Decimal("0.1")] * (len(grid) - 1)
    for language in ("en", "zh"):
        answers = task.answers(language, "number")
        assert [task.parse(answer, language, "number") for answer in answers] == list(grid)
        assert [task.answer_text(value, language, "number") for value in grid] == list(answers)


@pytest.mark.parametrize("task", builtin_tasks().values(), ids=by_name)
def test_a_task_survives_its_description(task: Task) -> None:
    assert Task.from_dict(task.name, task.to_dict()) == task


# --- parsing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["joy", " Joy ", "JOY", "joy.", "joy。", "\njoy .\n"])
def test_space_case_and_one_full_stop_are_forgiven(text: str) -> None:
    assert get_task("meld").parse(text, "en", "word") == 4


def test_a_chinese_answer_is_read_in_chinese_only() -> None:
    assert get_task("meld").parse("高兴。", "zh", "word") == 4
    assert get_task("meld").parse("高兴", "en", "word") is None
    assert get_task("meld").parse("joy", "zh", "word") is None


@pytest.mark.parametrize(
    "text",
    ["", " ", ".", "joyful", "jo", "joy joy", "joy, anger", "The emotion is joy", "joy!", "joy..", '"joy"', "4", "unknown"],
)
def test_what_is_no_word_of_the_task_is_none_never_a_class(text: str) -> None:
    assert get_task("meld").parse(text, "en", "word") is None


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("6", 6), ("3.", 3), ("7", None), ("-1", None), ("joy", None)])
def test_an_index_answer_is_one_of_the_indices(text: str, expected: int | None) -> None:
    assert get_task("meld").parse(text, "en", "index") == expected
    assert get_task("meld").parse("03", "en", "index") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.4", 1.4), ("-3.0", -3.0), ("+0.5", 0.5), ("2", 2.0), ("2.", 2.0), (" 1.0。", 1.0), ("1.0.", 1.0), ("-0.0", 0.0)],
)
def test_a_number_in_the_range_is_its_value(text: str, expected: float) -> None:
    for language in ("en", "zh"):
        assert get_task("mosi").parse(text, language, "number") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3.1",
        "-3.01",
        "positive",
        "1.0 or 2.0",
        "about 1",
        "1,5",
        "1e0",
        "nan",
        "inf",
        ".5",
        "--1",
        "1..",
        "１",
        "٣",
        "1.0。。",
    ],
)
def test_what_is_no_number_in_the_range_is_none(text: str) -> None:
    assert get_task("mosi").parse(text, "en", "number") is None


# --- formatting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (-0.0, "0.0"),
        (-0.04, "0.0"),
        (0.05, "0.0"),
        (0.15, "0.2"),
        (0.25, "0.2"),
        (-0.25, "-0.2"),
        (0.35, "0.4"),
        (1.4, "1.4"),
        (-3.0, "-3.0"),
        (2.9999, "3.0"),
    ],
)
def test_scores_are_rounded_half_to_even_on_their_decimal_value(value: float, text: str) -> None:
    assert get_task("mosi").format_score(value) == text
    assert get_task("mosi").answer_text(value, "zh", "number") == text


def test_decimals_set_the_grid_and_the_format() -> None:
    whole = Task.from_dict("stars", {"kind": "regression", "range": [1, 5], "decimals": 0})
    assert whole.answers("en", "number") == ("1", "2", "3", "4", "5")
    fine = Task.from_dict("valence", {"kind": "regression", "range": [0.25, 0.28], "decimals": 2})
    assert fine.answers("zh", "number") == ("0.25", "0.26", "0.27", "0.28")


# --- values of data files ---------------------------------------------------------------------------------------------


def test_a_label_is_known_by_name_alias_or_word_of_either_language() -> None:
    task = get_task("iemocap4")
    assert [task.class_index(v) for v in ("happy", "excited", " 高兴 ", "angry")] == [1, 1, 1, 0]
    assert get_task("iemocap6").class_index("excited") == 4


@pytest.mark.parametrize("value", ["Joy", "happy", "", "4", 4, "joyful"])
def test_an_unknown_label_is_an_error_that_names_it_the_place_and_the_task(value: str | int) -> None:
    with pytest.raises(UserError, match=rf"row 7: label {re.escape(repr(value))} is not in task 'meld'; it knows neutral"):
        get_task("meld").class_index(value, "row 7")


def test_a_label_left_out_on_purpose_is_ignored_and_no_other() -> None:
    four, six = get_task("iemocap4"), get_task("iemocap6")
    for label in ("frustrated", " xxx ", "other", "fear", "surprise", "disgust"):
        assert four.ignores(label)
    assert not six.ignores("frustrated")
    assert six.ignores("xxx")
    for value in ("excited", "happy", "高兴", "boredom", 3.0, None):
        assert not four.ignores(value)
    assert Task.from_dict("iemocap4", four.to_dict()) == four


@pytest.mark.parametrize(
    "value", [3.01, "-4", "high", float("nan"), None, True, "1_0", "1,5", "50%", "−1.5", "１.５", "nan"]
)
def test_a_score_out_of_range_is_an_error_that_names_it_and_the_place(value: object) -> None:
    with pytest.raises(UserError, match=rf"row 7: score {re.escape(repr(value))} of task 'mosi'"):
        get_task("mosi").score(value, "row 7")  # type: ignore[arg-type]
    assert get_task("mosi").score("-3") == -3.0


def test_a_style_that_does_not_fit_the_kind_is_an_error() -> None:
    with pytest.raises(UserError, match="word or an index, not 'number'"):
        get_task("meld").answers("en", "number")
    with pytest.raises(UserError, match="number, not 'word'"):
        get_task("mosi").answers("en", "word")
    with pytest.raises(ValueError, match="meld has no score range"):
        get_task("meld").grid()


# --- custom task files ------------------------------------------------------------------------------------------------

STRESS = """
stress:
  kind: classification
  target: stress_level
  aliases: {none: low}
  labels:
    - {name: low, en: relaxed, zh: 放松}
    - {name: high, en: stressed, zh: 紧张}
"""


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_custom_classification_file_is_a_task(tmp_path: Path) -> None:
    task = get_task(write(tmp_path, STRESS))
    assert (task.name, task.target, task.metrics) == ("stress", "stress_level", "classification")
    assert [task.class_index(v) for v in ("low", "none", "stressed", "紧张")] == [0, 0, 1, 1]
    assert task.answers("zh", "word") == ("放松", "紧张")
    assert task.parse("Stressed.", "en", "word") == 1


def test_a_custom_regression_file_is_a_task(tmp_path: Path) -> None:
    task = get_task(write(tmp_path, "arousal: {kind: regression, range: [0, 1], decimals: 2}"))
    assert (task.target, task.score_range, task.metrics) == ("arousal", (0.0, 1.0), "plain")
    assert len(task.grid()) == 101
    assert task.format_score(0.125) == "0.12"


def test_a_score_has_the_metrics_of_its_range_and_plain_ones_on_any_other() -> None:
    ranges = {(-3, 3): "mosi", (-1, 1): "sims", (0, 100): "plain", (-2, 2): "plain"}
    for bounds, metrics in ranges.items():
        assert Task.from_dict("t", {"kind": "regression", "range": list(bounds)}).metrics == metrics


def test_a_checkpoint_of_the_time_when_any_range_had_mosis_metrics_is_read_with_plain_ones() -> None:
    entry = {"kind": "regression", "range": [0.0, 5.0], "metrics": "mosi"}
    assert Task.from_checkpoint("t", entry).metrics == "plain"
    assert Task.from_checkpoint("t", {**entry, "range": [-3.0, 3.0]}).metrics == "mosi"


def labels(*rows: str) -> str:
    return "t: {kind: classification, labels: [" + ", ".join(rows) + "]}"


LOW, HIGH = "{name: low, en: low, zh: 低}", "{name: high, en: high, zh: 高}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("t: {kind: guess}", ["'t'", "kind", "guess"]),
        ("t: {target: x}", ["'t'", "kind", "None"]),
        ("t: {kind: regression, range: [0, 1], decimal: 2}", ["'t'", "unknown keys", "decimal"]),
        ("t: {kind: regression}", ["'t'", "range", "None"]),
        ("t: {kind: regression, range: [1, 0]}", ["'t'", "range", "[1, 0]"]),
        ("t: {kind: regression, range: [low, high]}", ["'t'", "range", "low"]),
        ("t: {kind: regression, range: [0, 1, 2]}", ["'t'", "range", "[0, 1, 2]"]),
        ("t: {kind: regression, range: [-2.55, 2.55]}", ["'t'", "range", "-2.55", "1 decimals"]),
        ("t: {kind: regression, range: [0, 1], decimals: many}", ["'t'", "decimals", "many"]),
        ("t: {kind: regression, range: [0, 1], metrics: f1}", ["'t'", "metrics", "f1", "mosi or sims"]),
        ("t: {kind: regression, range: [0, 100], metrics: mosi}", ["'t'", "mosi", "[0, 100]", "[-3.0, 3.0]", "plain"]),
        ("t: {kind: regression, range: [-3, 3], metrics: sims}", ["'t'", "sims", "[-3, 3]", "[-1.0, 1.0]"]),
        (labels(LOW), ["'t'", "two labels", "1"]),
        ("t: {kind: classification}", ["'t'", "two labels", "0"]),
        (labels(LOW, "high"), ["'t'", "label", "'high'"]),
        (labels(LOW, "{en: high, zh: 高}"), ["'t'", "label", "name"]),
        (labels(LOW, "{name: high, en: high}"), ["'t'", "'high'", "lacks a word"]),
        (labels(LOW, LOW), ["'t'", "twice", "low"]),
        (labels(LOW, "{name: high, en: high, zh: 低}"), ["'t'", "'zh'", "twice"]),
        (labels(LOW, HIGH)[:-1] + ", aliases: {x: middle}}", ["'t'", "aliases", "middle"]),
        (labels(LOW, HIGH)[:-1] + ", ignored: none}", ["'t'", "ignored", "'none'", "list"]),
        (labels(LOW, HIGH)[:-1] + ", ignored: [x, 低]}", ["'t'", "asks about and ignores", "低"]),
        ("t: {kind: regression, range: [0, 1], ignored: [x]}", ["'t'", "ignored", "classification"]),
        (labels(LOW, HIGH)[:-1] + ", metrics: mosi}", ["'t'", "metrics", "mosi"]),
        ("t: high", ["'t'", "'high'", "mapping"]),
        ("a: {kind: regression, range: [0, 1]}\nb: {kind: regression, range: [0, 1]}", ["exactly one task"]),
        ("- a\n- b", ["exactly one task"]),
        ("", ["exactly one task"]),
        ("t: {kind: [", ["not YAML"]),
    ],
)
def test_a_task_file_that_cannot_be_used_is_an_error_naming_file_and_field(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        get_task(write(tmp_path, text))
    for word in ["mine.yaml", *words]:
        assert word in str(caught.value)


def test_a_task_that_does_not_exist_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown task 'feelings'; built in are emotion"):
        get_task("feelings")
    with pytest.raises(UserError, match=r"absent\.yaml: no such task file"):
        get_task(str(tmp_path / "absent.yaml"))


def test_a_language_the_task_has_no_words_in_is_an_error(tmp_path: Path) -> None:
    task = get_task(write(tmp_path, labels("{name: low, en: low}", "{name: high, en: high}")))
    assert task.words("en") == ("low", "high")
    with pytest.raises(UserError, match="'t' has no label words in language 'zh'"):
        task.answers("zh", "word")


def test_a_label_that_ends_in_a_full_stop_is_read_back() -> None:
    labels = [{"name": "tbd", "en": "n.a."}, {"name": "joy", "en": "joy"}]
    task = Task.from_dict("mood", {"kind": "classification", "labels": labels})
    assert [task.parse(text, "en", "word") for text in ("n.a.", "N.A.", "n.a..", "joy.", "n.a")] == [0, 0, 0, 1, None]


def test_true_is_no_score() -> None:
    with pytest.raises(UserError, match="score True of task 'sentiment' is not a number"):
        get_task("sentiment").score(True)


@pytest.mark.parametrize("value", ["1", 1, 1.0, " 1 "])
def test_a_class_with_a_number_for_a_name_is_found_however_a_table_writes_the_number(value: object) -> None:
    labels = [{"name": "0", "en": "bad"}, {"name": "1", "en": "good"}]
    task = Task.from_dict("mood", {"kind": "classification", "labels": labels, "ignored": ["2"], "aliases": {"3": "0"}})
    assert task.class_index(value) == 1  # type: ignore[arg-type]
    assert task.class_index(3.0) == 0
    assert task.ignores(2.0)
    assert not task.ignores(1.5)
    named = [{"name": "0.0", "en": "bad"}, {"name": "1.0", "en": "good"}]
    exact = Task.from_dict("mood", {"kind": "classification", "labels": named})
    assert exact.class_index(1.0) == 1
