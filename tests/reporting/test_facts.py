"""The three facts: their numbers against plain NumPy on answers written by hand, and claims that do not hold.

The makers of answers and of evaluation folders at the top also serve ``test_report.py``.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_mer.adapters import build_adapter
from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.errors import UserError
from llm_mer.evaluation.conditions import AS_IS
from llm_mer.evaluation.p_values import PValue
from llm_mer.evaluation.rows import Evaluation, save_predictions, score_rows
from llm_mer.evaluation.subsets import EVERYTHING
from llm_mer.inference.prediction import Prediction
from llm_mer.model.configuration_mer import build_adapter_config
from llm_mer.prompting.tasks import Task, get_task
from llm_mer.reporting.facts import (
    SUBSET,
    Fact,
    FactLine,
    LoadedEvaluation,
    beats_baselines,
    beats_text_only,
    facts_text,
    load_evaluation,
    needs_signal,
    quickstart_facts,
    shuffled_condition,
)

EMOTION, SENTIMENT = get_task("emotion"), get_task("sentiment")
USED = ("joy", "sadness", "anger", "surprise")
SHUFFLED = "audio and vision shuffled"
RESAMPLES, SEED = 200, 3

Answers = dict[str, list[Prediction]]


# --- makers -----------------------------------------------------------------------------------------------------------


def emotion(identity: str, truth: str, value: str, language: str = "en", sure: float = 0.7, **fields: Any) -> Prediction:
    """An answer with so much probability on its value and the rest spread evenly."""
    rest = (1 - sure) / (EMOTION.num_classes - 1)
    shares = {name: sure if name == value else rest for name in EMOTION.label_names}
    logs = [float(np.log(share)) for share in shares.values()]
    return Prediction(
        identity, "emotion", language, value, truth=truth, probabilities=shares, log_probabilities=logs, **fields
    )


def sentiment(identity: str, truth: float, value: float, language: str = "en", **fields: Any) -> Prediction:
    """A score with a Laplace-like distribution around its value and an 80 % interval of ± 0.5."""
    grid = np.array(SENTIMENT.grid())
    shares = np.exp(-np.abs(grid - value) / 0.3)
    shares /= shares.sum()
    return Prediction(
        identity,
        "sentiment",
        language,
        value,
        truth=truth,
        probabilities={SENTIMENT.format_score(g): float(s) for g, s in zip(grid, shares, strict=True)},
        log_probabilities=[float(v) for v in np.log(shares)],
        interval=(value - 0.5, value + 0.5),
        **fields,
    )


def emotions(count: int, right: Callable[[int], bool], languages: Sequence[str] = ("en", "zh"), **fields: Any) -> list[Any]:
    """Answers of every language, the first half tagged neutral words; where not right, the next class is answered."""
    found = []
    for language in languages:
        for i in range(count):
            truth = USED[i % len(USED)]
            value = truth if right(i) else USED[(i + 1) % len(USED)]
            tags = (SUBSET,) if i < count // 2 else ()
            found.append(emotion(f"{language}-{i:02d}", truth, value, language, tags=tags, **fields))
    return found


def sentiments(count: int, error: float, languages: Sequence[str] = ("en", "zh"), **fields: Any) -> list[Any]:
    """Scores from -2 to 2 with an error of alternating sign."""
    found = []
    for language in languages:
        for i, truth in enumerate(np.linspace(-2, 2, count).round(1)):
            value = float(np.round(truth + (error if i % 2 else -error), 1))
            tags = (SUBSET,) if i < count // 2 else ()
            found.append(sentiment(f"{language}-{i:02d}", float(truth), value, language, tags=tags, **fields))
    return found


def diagnostics_of(adapter: str, **options: Any) -> list[DiagnosticInfo]:
    """What an adapter that reads all modalities and answers both tasks says of its diagnostics."""
    sizes = {"text": 4, "audio": 4, "vision": 4}
    settings = {"hidden_size": 8, "backbone_size": 8, "num_classes": EMOTION.num_classes, "score_range": (-3.0, 3.0)}
    config = build_adapter_config(adapter, {"feature_sizes": sizes, **settings, **options})
    return build_adapter(adapter, config).diagnostic_info(EMOTION.label_names)


def written(
    folder: Path,
    answers: Answers,
    tasks: Sequence[Task] = (EMOTION, SENTIMENT),
    checkpoint: dict[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """The two files of ``llm-mer evaluate``, from given answers by condition."""
    described = {"adapter": "egmf", "modalities": ["text", "audio", "vision"], **(checkpoint or {})}
    fields = {
        "name": folder.name,
        "data": "hand-built (0)",
        "split": "test",
        "diagnostics": diagnostics_of("egmf"),
        **fields,
    }
    evaluation = Evaluation(
        **fields,
        checkpoint=described,
        seed=SEED,
        resamples=RESAMPLES,
    )
    for task in tasks:
        for condition, predictions in answers.items():
            if any(p.task == task.name for p in predictions):
                evaluation.rows += score_rows(condition, predictions, task, RESAMPLES, SEED)
    folder.mkdir(parents=True)
    evaluation.save(folder)
    save_predictions(folder / "predictions.jsonl", answers)
    return folder


def mostly(i: int) -> bool:
    """Right nine times of ten."""
    return i % 10 != 7


def seldom(i: int) -> bool:
    """Right five times of twenty, chance with four classes."""
    return i % 4 == 3


@pytest.fixture(scope="module")
def main(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hears and sees: right with sound and picture, at chance on neutral words when those are of others."""
    answers = {
        AS_IS: [*emotions(40, mostly), *sentiments(40, 0.2)],
        SHUFFLED: [*emotions(40, seldom), *sentiments(40, 1.5)],
    }
    return written(tmp_path_factory.mktemp("facts") / "main", answers)


@pytest.fixture
def spoilt(main: Path, tmp_path: Path) -> Path:
    """A copy that a test may write into."""
    return Path(shutil.copytree(main, tmp_path / "spoilt"))


@pytest.fixture(scope="module")
def text_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reads: at chance on neutral words, right elsewhere."""
    answers = {AS_IS: emotions(40, lambda i: seldom(i) if i < 20 else mostly(i))}
    return written(tmp_path_factory.mktemp("facts") / "text", answers, [EMOTION], {"modalities": ["text"]})


# --- NumPy alone ------------------------------------------------------------------------------------------------------


def from_file(folder: Path, condition: str, task: str = "emotion", tag: str | None = None) -> dict[str, tuple[Any, Any]]:
    """``{id: (truth, value)}`` from the lines themselves, read without the program."""
    entries = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        e["id"]: (e["truth"], e["value"])
        for e in entries
        if e["condition"] == condition and e["task"] == task and (tag is None or tag in e.get("tags", ()))
    }


def hits(answers: dict[str, tuple[Any, Any]]) -> np.ndarray:
    return np.array([truth == value for truth, value in answers.values()], dtype=float)


def drawn(values: np.ndarray) -> np.ndarray:
    """Means of the resamples that this seed draws."""
    rows = np.random.default_rng(SEED).integers(0, len(values), (RESAMPLES, len(values)))
    return values[rows].mean(axis=1)


def line_of(fact: Fact, start: str) -> FactLine:
    (found,) = [line for line in fact.lines if line.what.startswith(start)]
    return found


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_accuracy_on_neutral_words_as_is_shuffled_and_text_only_is_that_of_plain_numpy(main: Path, text_only: Path) -> None:
    second, third = (
        needs_signal(load_evaluation(str(main))),
        beats_text_only(load_evaluation(str(main)), load_evaluation(str(text_only))),
    )
    intact, shuffled = (hits(from_file(main, name, tag=SUBSET)) for name in (AS_IS, SHUFFLED))
    reading = hits(from_file(text_only, AS_IS, tag=SUBSET))
    assert (intact.mean(), shuffled.mean(), reading.mean()) == (0.9, 0.25, 0.25)  # what the fixtures promise
    expected = [
        (second, f"emotion accuracy, {AS_IS}", intact),
        (second, f"emotion accuracy, {SHUFFLED}", shuffled),
        (third, "emotion accuracy, main", intact),
        (third, "emotion accuracy, text (text only)", reading),
    ]
    for fact, start, values in expected:
        line = line_of(fact, start)
        assert line.n == len(values) == 40
        assert line.value == pytest.approx(values.mean())
        assert line.interval == pytest.approx(np.quantile(drawn(values), [0.025, 0.975]))
    assert second.holds is True
    assert third.holds is True


def test_the_paired_difference_and_its_interval_are_those_of_plain_numpy(main: Path, text_only: Path) -> None:
    intact, shuffled = from_file(main, AS_IS, tag=SUBSET), from_file(main, SHUFFLED, tag=SUBSET)
    reading = from_file(text_only, AS_IS, tag=SUBSET)
    drop = line_of(needs_signal(load_evaluation(str(main))), "drop")
    gain = line_of(beats_text_only(load_evaluation(str(main)), load_evaluation(str(text_only))), "difference")
    for line, others in ((drop, shuffled), (gain, reading)):
        assert intact.keys() == others.keys()
        differences = hits(intact) - hits({key: others[key] for key in intact})
        low, high = np.quantile(drawn(differences), [0.025, 0.975])
        assert line.value == pytest.approx(differences.mean())
        assert line.interval == pytest.approx((low, high))
        error = differences.std() / np.sqrt(len(differences))  # and the normal approximation is near
        assert line.interval == pytest.approx(
            (differences.mean() - 1.96 * error, differences.mean() + 1.96 * error), abs=0.05
        )
        spread = drawn(differences)
        tail = min(np.sum(spread <= 0) + 1, np.sum(spread >= 0) + 1) / (RESAMPLES + 1)
        assert line.p is not None
        assert (line.p.value, line.p.is_bound) == (pytest.approx(2 * tail), tail == 1 / (RESAMPLES + 1))


def test_pairs_are_made_by_identity_and_not_by_order(main: Path, tmp_path: Path) -> None:
    reading = emotions(40, lambda i: seldom(i) if i < 20 else mostly(i))
    order = np.random.default_rng(0).permutation(len(reading))
    folders = [
        written(tmp_path / name, {AS_IS: answers}, [EMOTION], {"modalities": ["text"]})
        for name, answers in (("a", reading), ("b", [reading[i] for i in order]))
    ]
    first, second = (
        line_of(beats_text_only(load_evaluation(str(main)), load_evaluation(str(f))), "difference") for f in folders
    )
    assert first == second


def test_every_language_and_task_is_judged_against_its_own_commonest_class_or_mean_score(main: Path) -> None:
    fact = beats_baselines(load_evaluation(str(main)))
    assert fact.holds is True
    whats = [f"{language} {what}" for what in ("emotion accuracy", "sentiment MAE") for language in ("en", "zh")]
    assert [line.what for line in fact.lines] == whats
    for language in ("en", "zh"):
        classes = {k: v for k, v in from_file(main, AS_IS).items() if k.startswith(language)}
        line = line_of(fact, f"{language} emotion")
        assert (line.value, line.n) == (pytest.approx(hits(classes).mean()), 40)
        _, counts = np.unique([truth for truth, _ in classes.values()], return_counts=True)
        assert f"baseline {counts.max() / counts.sum():.3f}" in line.against
        scores = {k: v for k, v in from_file(main, AS_IS, "sentiment").items() if k.startswith(language)}
        truth, value = np.array(list(scores.values())).T
        line = line_of(fact, f"{language} sentiment")
        assert line.value == pytest.approx(np.abs(truth - value).mean())
        assert line.interval == pytest.approx(np.quantile(drawn(np.abs(truth - value)), [0.025, 0.975]))
        assert f"baseline {np.abs(truth - truth.mean()).mean():.3f}" in line.against


def test_the_three_facts_hold_in_words_with_n_and_interval_of_every_number(main: Path, text_only: Path) -> None:
    facts = quickstart_facts(load_evaluation(str(main)), load_evaluation(str(text_only)))
    text = facts_text(facts)
    heads = [line for line in text.splitlines() if line[:1].isdigit()]
    assert [line[:2] for line in heads] == ["1.", "2.", "3."]
    assert all(line.endswith(": holds") for line in heads)
    for fact in facts:
        for line in fact.lines:
            assert line.interval is not None
            assert f"{line.value:.3f} [{line.interval[0]:.3f}, {line.interval[1]:.3f}], n={line.n}" in text


# --- claims that do not hold ------------------------------------------------------------------------------------------


def test_fact_1_does_not_hold_when_one_language_is_no_better_than_its_commonest_class(tmp_path: Path) -> None:
    answers = [*emotions(40, mostly, ["en"]), *emotions(40, seldom, ["zh"])]
    fact = beats_baselines(load_evaluation(str(written(tmp_path / "x", {AS_IS: answers}, [EMOTION]))))
    assert [(line.what[:2], line.holds) for line in fact.lines] == [("en", True), ("zh", False)]
    assert fact.holds is False
    assert fact.text().splitlines()[0].endswith(": does not hold")


@pytest.mark.filterwarnings("ignore:correlation of a constant")
def test_fact_1_does_not_hold_for_scores_that_are_always_the_mean(tmp_path: Path) -> None:
    same = [dataclasses.replace(p, value=0.0) for p in sentiments(40, 0.2)]
    fact = beats_baselines(load_evaluation(str(written(tmp_path / "x", {AS_IS: same}, [SENTIMENT]))))
    assert [line.holds for line in fact.lines] == [False, False]
    assert fact.holds is False


def test_fact_1_counts_an_interval_that_ends_on_the_baseline_as_not_above_it(tmp_path: Path) -> None:
    loaded = load_evaluation(str(written(tmp_path / "x", {AS_IS: emotions(40, mostly, ["en"])}, [EMOTION])))
    row = loaded.evaluation.find(AS_IS, "emotion", "en")
    assert row is not None
    for low, holds in ((0.25, False), (0.2501, True)):
        row.intervals["accuracy"] = (low, 1.0)
        assert beats_baselines(loaded).holds is holds


def test_fact_2_does_not_hold_when_shuffling_leaves_the_answers_right(tmp_path: Path) -> None:
    answers = {AS_IS: emotions(40, mostly), SHUFFLED: emotions(40, mostly)}
    fact = needs_signal(load_evaluation(str(written(tmp_path / "x", answers, [EMOTION]))))
    assert line_of(fact, f"emotion accuracy, {SHUFFLED}").holds is False
    drop = line_of(fact, "drop")
    assert (drop.value, drop.p, drop.holds) == (0.0, PValue(1.0), False)
    assert fact.verdict == "does not hold"


def test_fact_2_does_not_hold_when_nothing_was_right_before_either(tmp_path: Path) -> None:
    answers = {AS_IS: emotions(40, seldom), SHUFFLED: emotions(40, seldom)}
    fact = needs_signal(load_evaluation(str(written(tmp_path / "x", answers, [EMOTION]))))
    assert line_of(fact, f"emotion accuracy, {SHUFFLED}").holds is True
    assert fact.holds is False


def test_fact_2_shows_each_language_beside_the_verdict_without_letting_it_count(main: Path) -> None:
    beside = [
        line for line in needs_signal(load_evaluation(str(main))).lines if line.holds is None and line.what.startswith("  ")
    ]
    assert [line.what.strip()[:2] for line in beside] == ["en", "zh"]
    assert [line.n for line in beside] == [20, 20]


def test_fact_3_does_not_hold_against_a_text_only_model_that_is_as_good(main: Path, tmp_path: Path) -> None:
    same = written(tmp_path / "text", {AS_IS: emotions(40, mostly)}, [EMOTION], {"modalities": ["text"]})
    fact = beats_text_only(load_evaluation(str(main)), load_evaluation(str(same)))
    difference = line_of(fact, "difference")
    assert (difference.value, difference.interval, difference.holds) == (0.0, (0.0, 0.0), False)
    assert fact.holds is False


# --- claims that cannot be judged -------------------------------------------------------------------------------------


def test_without_a_text_only_evaluation_fact_3_says_what_is_missing(main: Path) -> None:
    fact = beats_text_only(load_evaluation(str(main)), None)
    assert (fact.holds, fact.verdict, fact.lines) == (None, "cannot be judged", [])
    assert "--text_only" in fact.text()


@pytest.mark.parametrize(
    ("conditions", "why"), [((AS_IS,), "--conditions shuffle"), ((AS_IS, "audio shuffled"), "--conditions shuffle")]
)
def test_without_everything_but_the_words_shuffled_fact_2_cannot_be_judged(
    conditions: Sequence[str], why: str, tmp_path: Path
) -> None:
    fact = needs_signal(
        load_evaluation(str(written(tmp_path / "x", {c: emotions(40, mostly) for c in conditions}, [EMOTION])))
    )
    assert fact.holds is None
    assert why in fact.why


def test_with_no_utterance_of_neutral_words_facts_2_and_3_cannot_be_judged(tmp_path: Path) -> None:
    plain = [dataclasses.replace(p, tags=()) for p in emotions(40, mostly)]
    main = load_evaluation(str(written(tmp_path / "x", {AS_IS: plain, SHUFFLED: plain}, [EMOTION])))
    text = load_evaluation(str(written(tmp_path / "t", {AS_IS: plain}, [EMOTION], {"modalities": ["text"]})))
    for fact in (needs_signal(main), beats_text_only(main, text)):
        assert fact.verdict == "cannot be judged"
        assert SUBSET in fact.why


def test_with_scores_alone_fact_1_is_judged_and_facts_2_and_3_cannot_be(tmp_path: Path) -> None:
    answers = {AS_IS: sentiments(40, 0.2), SHUFFLED: sentiments(40, 1.5)}
    main = load_evaluation(str(written(tmp_path / "x", answers, [SENTIMENT])))
    text = load_evaluation(str(written(tmp_path / "t", {AS_IS: sentiments(40, 1.5)}, [SENTIMENT], {"modalities": ["text"]})))
    assert [fact.holds for fact in quickstart_facts(main, text)] == [True, None, None]
    assert all("classification task" in fact.why for fact in quickstart_facts(main, text)[1:])


def test_an_evaluation_without_rows_gives_no_verdict(tmp_path: Path) -> None:
    facts = quickstart_facts(load_evaluation(str(written(tmp_path / "x", {AS_IS: []}))), None)
    assert [fact.holds for fact in facts] == [None] * 3
    assert all(fact.why for fact in facts)


def test_the_shuffled_condition_is_found_whatever_the_order_of_its_modalities() -> None:
    evaluation = Evaluation("x", {"modalities": ["text", "audio", "vision"]}, "d", "test", 0, 10)
    for name in ("vision and audio shuffled", "audio and vision shuffled"):
        predictions: Answers = {AS_IS: [], "audio shuffled": [], name: []}
        assert shuffled_condition(LoadedEvaluation(evaluation, predictions, Path("x"))) == name


# --- pairs that are none ----------------------------------------------------------------------------------------------


def test_a_second_model_that_reads_more_than_text_is_refused_by_its_folder(main: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "hears", {AS_IS: emotions(40, mostly)}, [EMOTION], {"modalities": ["text", "audio"]})
    with pytest.raises(UserError, match=r"hears: its checkpoint reads text, audio, not text alone"):
        beats_text_only(load_evaluation(str(main)), load_evaluation(str(other)))


def test_a_text_only_evaluation_of_other_utterances_is_refused_with_the_counts(main: Path, tmp_path: Path) -> None:
    fewer = written(tmp_path / "fewer", {AS_IS: emotions(30, mostly)}, [EMOTION], {"modalities": ["text"]})
    with pytest.raises(UserError, match=r"fewer: they do not answer the same utterances \(40 and 30, 30 in common\)"):
        beats_text_only(load_evaluation(str(main)), load_evaluation(str(fewer)))


def test_a_text_only_evaluation_with_other_truths_is_refused(main: Path, tmp_path: Path) -> None:
    changed = [dataclasses.replace(p, truth="fear") for p in emotions(40, mostly)]
    other = written(tmp_path / "other", {AS_IS: changed}, [EMOTION], {"modalities": ["text"]})
    with pytest.raises(UserError, match=r"other: .*different truths"):
        beats_text_only(load_evaluation(str(main)), load_evaluation(str(other)))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_missing_folder_or_one_without_an_evaluation_is_named(tmp_path: Path) -> None:
    for name in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=rf"{name}: no evaluation\.json"):
            load_evaluation(str(tmp_path / name))


def test_an_evaluation_without_its_predictions_is_named(spoilt: Path) -> None:
    (spoilt / "predictions.jsonl").unlink()
    with pytest.raises(UserError, match=r"spoilt: no predictions\.jsonl"):
        load_evaluation(str(spoilt))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", "{"),
        ("evaluation.json", "[]"),
        ("evaluation.json", '{"name": "x"}'),
        ("evaluation.json", '{"rows": [], "colour": 1}'),
        ("predictions.jsonl", "half a li"),
        ("predictions.jsonl", '{"id": "a"}'),
        ("predictions.jsonl", '{"condition": "as is", "colour": 1}'),
    ],
)
def test_files_that_cannot_be_read_are_refused_by_their_folder(spoilt: Path, name: str, content: str) -> None:
    (spoilt / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"spoilt: evaluation\.json or predictions\.jsonl cannot be read"):
        load_evaluation(str(spoilt))


def test_predictions_of_another_run_than_the_scores_are_refused_with_both_counts(spoilt: Path) -> None:
    path = spoilt / "predictions.jsonl"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:30]), encoding="utf-8")
    with pytest.raises(UserError, match=r"spoilt: .*scores 80 answers of task emotion .*has 30"):
        load_evaluation(str(spoilt))


def test_an_evaluation_is_found_in_its_checkpoint_with_the_log_of_its_training(tmp_path: Path) -> None:
    folder = written(tmp_path / "run" / "evaluation", {AS_IS: emotions(8, mostly)}, [EMOTION])
    assert load_evaluation(str(folder)).read_log() == []
    log = [{"epoch": 1.0, "loss": 0.5}]
    (tmp_path / "run" / "log_history.json").write_text(json.dumps(log), encoding="utf-8")
    for place in (folder, tmp_path / "run"):
        loaded = load_evaluation(str(place))
        assert loaded.folder == folder
        assert loaded.read_log() == log


def test_tasks_are_read_back_from_the_files_with_labels_range_and_convention(main: Path, tmp_path: Path) -> None:
    emotion_task, sentiment_task = load_evaluation(str(main)).tasks
    assert (emotion_task.label_names, emotion_task.metrics) == (EMOTION.label_names, "classification")
    assert (sentiment_task.score_range, sentiment_task.metrics) == (SENTIMENT.score_range, "mosi")
    sims, iemocap = get_task("sims"), get_task("iemocap4")
    scores = [Prediction(str(i), "sims", "zh", v, truth=t) for i, (t, v) in enumerate(((-0.4, 0.1), (0.8, 0.5)))]
    even = np.log(np.full(4, 0.25)).tolist()
    names = iemocap.label_names
    classes = [Prediction(str(i), "iemocap4", "en", names[i], truth=names[0], log_probabilities=even) for i in range(4)]
    read = load_evaluation(str(written(tmp_path / "x", {AS_IS: [*scores, *classes]}, [sims, iemocap]))).tasks
    assert (read[0].metrics, read[0].score_range) == ("sims", (-0.4, 0.8))  # no distribution: the truths' own range
    assert (read[1].metrics, read[1].label_names) == ("iemocap", iemocap.label_names)  # no names beside: from F1s


def test_known_predictions_are_those_their_row_was_counted_from(main: Path) -> None:
    loaded = load_evaluation(str(main))
    assert loaded.languages == ["en", "zh"]
    for row in loaded.evaluation.rows:
        assert len(loaded.known(row.condition, row.task, row.language, row.subset)) == row.n
    assert loaded.known("no such condition", "emotion", EVERYTHING) == []
