"""evaluate: conditions, rows and files, on a checkpoint that has learnt from audio and vision."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import make_utterances

from llm_mer.checkpoints.integrity import write_checksums
from llm_mer.data.store import write_store
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.evaluation.conditions import AS_IS, DIALOGUE, GENERATION, Condition, parse_conditions, withhold_adapter
from llm_mer.evaluation.evaluate import EvaluateConfig, evaluate, evaluate_checkpoint, load_pipeline, plan
from llm_mer.evaluation.metrics import compute_metrics
from llm_mer.evaluation.over_seeds import run
from llm_mer.evaluation.rows import Evaluation, load_predictions, score_rows, table
from llm_mer.evaluation.subsets import turn_group
from llm_mer.inference.dialogues import decode_dialogues
from llm_mer.inference.prediction import Prediction
from llm_mer.prompting.tasks import get_task

ALL = ("text", "audio", "vision")
EMOTION = get_task("emotion")


def test_conditions_say_what_is_shuffled_or_missing() -> None:
    found = parse_conditions(["shuffle:audio,vision", "without:text"], ALL)
    assert found == {
        "audio and vision shuffled": Condition("audio and vision shuffled", "shuffle", ("audio", "vision")),
        "without text": Condition("without text", "without", ("text",)),
    }


def test_the_parts_that_are_no_modality_are_those_of_a_language_model() -> None:
    found = parse_conditions(["shuffle:transcript", "shuffle:features", "without:adapter"], ["audio"])
    assert [(c.name, c.modalities, c.withholds_adapter) for c in found.values()] == [
        ("transcript shuffled", ("transcript",), False),
        ("features shuffled", ("features",), False),
        ("without adapter", ("adapter",), True),
    ]
    assert list(parse_conditions(["shuffle:features"], ["audio"], with_backbone=False)) == ["features shuffled"]
    for text in ("shuffle:transcript", "without:adapter"):
        with pytest.raises(UserError, match=f"{text}.*only an adapter"):
            parse_conditions([text], ["audio"], with_backbone=False)


def test_subsets_are_all_six_proper_ones_which_with_the_whole_make_seven() -> None:
    found = parse_conditions(["subsets"], ALL)
    kept = {tuple(m for m in ALL if m not in condition.modalities) for condition in found.values()}
    assert len(found) == 6
    assert kept == {("text",), ("audio",), ("vision",), ("text", "audio"), ("text", "vision"), ("audio", "vision")}


def test_damage_is_named_with_its_amount() -> None:
    found = parse_conditions(["missing:0.10", "audio_snr:-5", "drop_frames:1", "word_errors:0.2"], ALL)
    assert [(c.name, c.kind, c.amount) for c in found.values()] == [
        ("missing rate 0.1", "missing", 0.1),
        ("audio at -5 dB", "audio_snr", -5.0),
        ("frames dropped 1", "drop_frames", 1.0),
        ("word error rate 0.2", "word_errors", 0.2),
    ]


@pytest.mark.parametrize("text", ["missing:1.5", "missing:0", "missing:much", "missing", "audio_snr:nan", "drop_frames:-1"])
def test_damage_without_an_amount_that_makes_sense_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=text.split(":")[0]):
        parse_conditions([text], ALL)


@pytest.mark.parametrize(
    ("text", "lacks"), [("audio_snr:5", "audio"), ("drop_frames:0.5", "vision"), ("word_errors:0.1", "text")]
)
def test_damage_to_what_the_checkpoint_does_not_read_is_refused(text: str, lacks: str) -> None:
    with pytest.raises(UserError, match=f"not {lacks}"):
        parse_conditions([text], [m for m in ALL if m != lacks])


@pytest.mark.parametrize("text", ["mix:audio", "shuffle", "shuffle:smell", "without:text,audio,vision"])
def test_a_condition_that_makes_no_sense_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(UserError, match=text.split(",")[0].replace("(", r"\(")):
        parse_conditions([text], ALL)


def prediction(identity: str, value: str, truth: str, **fields: object) -> Prediction:
    scores = np.full(6, -3.0)
    scores[EMOTION.class_index(value)] = -0.2
    return Prediction(identity, "emotion", "en", value, truth=truth, log_probabilities=scores.tolist(), **fields)  # type: ignore[arg-type]


def test_a_free_generation_that_cannot_be_read_is_wrong_and_counted() -> None:
    rows = [prediction(str(i), "joy", "joy", generated="?", parsed="joy" if i < 3 else None) for i in range(4)]
    scored = score_rows(GENERATION, rows, EMOTION, 50, 0, use_parsed=True)[0]
    assert scored.unparseable_rate == 0.25
    assert scored.metrics["accuracy"] == 0.75


def test_a_row_tells_the_mean_probability_outside_the_answers_and_a_file_without_it_loads(tmp_path: Path) -> None:
    rows = [prediction(str(i), "joy", "joy", outside_mass=math.log(share)) for i, share in enumerate((0.1, 0.2, 0.6))]
    scored = score_rows(AS_IS, rows, EMOTION, 50, 0)
    assert [row.outside_share for row in scored] == [pytest.approx(0.3)] * 2
    evaluation = Evaluation("x", {}, "d", "test", 0, 50, scored)
    assert table(evaluation).splitlines()[0].endswith("unparseable 0.000  outside the answers 0.3")
    evaluation.save(tmp_path)
    assert [row.outside_share for row in Evaluation.load(tmp_path).rows] == [row.outside_share for row in scored]
    entry = json.loads((tmp_path / "evaluation.json").read_text())
    for row in entry["rows"]:
        del row["outside_share"]
    (tmp_path / "evaluation.json").write_text(json.dumps(entry))
    assert [row.outside_share for row in Evaluation.load(tmp_path).rows] == [None, None]


def test_answers_of_no_language_model_have_no_probability_outside() -> None:
    rows = [prediction(str(i), "joy", "joy", outside_mass=None if i else -1.0) for i in range(2)]
    scored = score_rows(AS_IS, rows, EMOTION, 50, 0)
    assert [row.outside_share for row in scored] == [None, None]
    assert "outside" not in table(Evaluation("x", {}, "d", "test", 0, 50, scored))


def test_the_baseline_of_a_row_is_its_own_majority_class() -> None:
    rows = [prediction(str(i), "joy", "joy" if i < 3 else "fear", tags=("x",) if i >= 2 else ()) for i in range(6)]
    found = {row.subset: row for row in score_rows(AS_IS, rows, EMOTION, 50, 0) if row.language == "en"}
    assert found["all"].baseline["accuracy"] == 0.5
    assert found["x"].baseline["accuracy"] == 0.75
    assert found["x"].n == 4


def test_decoding_a_dialogue_needs_its_speakers() -> None:
    with pytest.raises(UserError, match="dialogue 'd'"):
        decode_dialogues([prediction("a", "joy", "joy", dialogue_id="d", turn=0)], EMOTION, 0.5)


def test_decoding_smooths_one_doubtful_turn_of_a_speaker_and_leaves_the_rest() -> None:
    rows = [prediction(f"{i}", "joy", "joy", dialogue_id="d", turn=i, speaker="A") for i in range(5)]
    doubtful = np.full(6, -4.0)
    doubtful[EMOTION.class_index("fear")], doubtful[EMOTION.class_index("joy")] = -0.68, -0.75
    rows[2].value, rows[2].log_probabilities = "fear", doubtful.tolist()
    alone = prediction("z", "fear", "fear")
    decoded = decode_dialogues([*reversed(rows), alone], EMOTION, 0.1)
    assert [p.value for p in decoded] == ["joy"] * 5 + ["fear"]
    assert [p.id for p in decoded] == ["4", "3", "2", "1", "0", "z"]


def test_evaluate_writes_what_it_prints_and_shuffling_takes_the_score_away(
    trained: Path, store: Path, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        checkpoint=str(trained),
        data=[str(store)],
        output=str(tmp_path / "scores"),
        conditions=["shuffle:audio,vision", "shuffle:transcript", "without:text"],
        dialogue_decoder="offline",
        generate=True,
        resamples=100,
    )
    text = run(config)
    evaluation = Evaluation.load(tmp_path / "scores")
    row = evaluation.find(task="emotion")
    shuffled = evaluation.find("audio and vision shuffled", "emotion")
    assert row is not None
    assert shuffled is not None
    assert row.metrics["accuracy"] > shuffled.metrics["accuracy"] + 0.25
    assert f"accuracy {row.metrics['accuracy']:.3f}" in text
    assert {r.condition for r in evaluation.rows} == {
        AS_IS,
        "audio and vision shuffled",
        "transcript shuffled",
        "without text",
        GENERATION,
        DIALOGUE,
    }
    found = next(d for d in evaluation.dependence if d.task == "emotion")
    assert [swap.condition for swap in found.swaps] == ["audio and vision shuffled", "transcript shuffled"]
    assert found.swaps[0].cost.value == pytest.approx(row.metrics["accuracy"] - shuffled.metrics["accuracy"])
    assert "reads sound and face" in found.sentence
    assert found.sentence in text
    # Every metric can be recomputed from the predictions alone.
    kept = [p for p in load_predictions(tmp_path / "scores" / "predictions.jsonl")[AS_IS] if p.task == "emotion"]
    again = compute_metrics(EMOTION, [p.truth for p in kept], [p.value for p in kept])
    assert again["accuracy"] == pytest.approx(row.metrics["accuracy"])
    assert row.n == 32


def test_without_adapter_no_answer_depends_on_sound_and_face_and_afterwards_the_adapter_speaks_again(
    trained: Path, store: Path
) -> None:
    config = EvaluateConfig(checkpoint=str(trained), data=[str(store)], tasks=["emotion"], resamples=50)
    pipeline = load_pipeline(config, ProcessGroup())
    planned = plan(config, pipeline, str(store), trained)
    swapped = planned.dataset.shuffled(["audio", "vision"], 0)
    answers = {}
    for kind in ("as is", "withheld"):
        condition = None if kind == "as is" else Condition("without adapter", "without", ("adapter",))
        with withhold_adapter(pipeline.predictor.adapter, condition):
            own, other = (pipeline.predictor.predict(dataset) for dataset in (planned.dataset, swapped))
        answers[kind] = ([p.log_probabilities for p in own], [p.log_probabilities for p in other])
    assert answers["withheld"][0] == answers["withheld"][1]
    assert answers["as is"][0] != answers["as is"][1]
    assert [p.log_probabilities for p in pipeline.predictor.predict(planned.dataset)] == answers["as is"][0]


def test_evaluating_twice_gives_the_same_files(trained: Path, store: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(EvaluateConfig(checkpoint=str(trained), data=[str(store)], output=str(tmp_path / name), resamples=50))
    assert (tmp_path / "a" / "evaluation.json").read_text() == (tmp_path / "b" / "evaluation.json").read_text()

    def lines(name: str) -> list[dict[str, object]]:
        found = [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").open(encoding="utf-8")]
        return [{k: v for k, v in entry.items() if k != "seconds"} for entry in found]

    assert lines("a") == lines("b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "holdout"}, "holdout"),
        ({"tasks": ["meld"]}, "meld"),
        ({"conditions": ["shuffle:smell"]}, "smell"),
        ({"languages": []}, "languages: empty; choose from en, zh"),
        ({"languages": ["fr"]}, "languages: 'fr'; choose from en, zh"),
        ({"tasks": []}, "tasks: names no task"),
    ],
)
def test_what_does_not_fit_is_named(trained: Path, store: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateConfig(checkpoint=str(trained), data=[str(store)], **changes), progress=False)  # type: ignore[arg-type]


@pytest.fixture
def no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("predicted before the options were checked")

    monkeypatch.setattr("llm_mer.inference.predictor.Predictor.predict_batch", refuse)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": ["shuffle:smell"]}, "smell"),
        ({"conditions": ["without:text", "shuffle:audio"], "limit": 1}, "'test-004' is the only utterance in language 'en'"),
        ({"resamples": 0}, "--resamples 0"),
        ({"batch_size": 0}, "--batch_size 0"),
        ({"seed": -1}, "--seed -1: it must be at least 0"),
        ({"dialogue_decoder": "online", "tasks": ["sentiment"]}, "no task has classes to decode"),
        ({"dialogue_decoder": "online", "limit": 5}, "--limit: leaves gaps in dialogues"),
    ],
)
@pytest.mark.usefixtures("no_prediction")
def test_a_mistake_is_told_before_anything_is_predicted(
    trained: Path, store: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateConfig(checkpoint=str(trained), data=[str(store)], **changes), progress=False)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_prediction")
def test_a_checkpoint_without_p0_and_speech_without_speakers_are_told_before_anything_is_predicted(
    copied: Path, store: Path, tmp_path: Path
) -> None:
    nobody = [dataclasses.replace(u, speaker=None) for u in make_utterances("test", 4)]
    data = write_store(nobody, tmp_path / "nobody")
    with pytest.raises(UserError, match="'test-en-0' has utterances without a speaker"):
        evaluate(EvaluateConfig(checkpoint=str(copied), data=[str(data)], dialogue_decoder="offline"), progress=False)
    path = copied / "llm_mer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "shift_probability": {}}))
    write_checksums(copied)
    with pytest.raises(UserError, match="no p0 for the dialogue decoder"):
        evaluate(EvaluateConfig(checkpoint=str(copied), data=[str(store)], dialogue_decoder="offline"), progress=False)


@pytest.mark.usefixtures("no_prediction")
def test_what_the_decoder_cannot_order_or_has_nothing_to_do_on_is_told_before_anything_is_predicted(
    trained: Path, tmp_path: Path
) -> None:
    given = make_utterances("test", 8)
    for name, changes, message in (
        ("once", {"turn": 1}, "dialogue 'test-en-0' has turn 1 twice"),
        ("alone", {"turn": None, "dialogue_id": None}, "no utterance belongs to a dialogue, so there is nothing to decode"),
    ):
        data = write_store([dataclasses.replace(u, **changes) for u in given], tmp_path / name)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=message):
            evaluate(EvaluateConfig(checkpoint=str(trained), data=[str(data)], dialogue_decoder="offline"), progress=False)


def test_a_condition_is_the_same_in_every_order_of_its_modalities() -> None:
    texts = ["shuffle:audio,vision", "shuffle:vision,audio", "without:text,text", "without:text"]
    found = parse_conditions(texts, ALL)
    assert list(found) == ["audio and vision shuffled", "without text"]


def test_of_one_utterance_the_table_says_that_its_intervals_say_nothing(trained: Path, store: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(checkpoint=str(trained), data=[str(store)], output=str(tmp_path), resamples=20, limit=1)
    text = run(config)
    assert "intervals of rows with fewer than 10 dialogues, speakers or utterances are rough; the fewest here are 1" in text
    assert "of a single one nothing can be resampled" in text
    assert "collapsed" not in text


def test_damage_falls_below_as_is_and_its_area_stands_in_the_file_and_the_table(
    trained: Path, store: Path, tmp_path: Path
) -> None:
    conditions = ["missing:0.3", "missing:0.9", "drop_frames:1", "word_errors:0.5"]
    config = EvaluateConfig(
        checkpoint=str(trained), data=[str(store)], output=str(tmp_path), conditions=conditions, resamples=50, by=["turn"]
    )
    text = run(config)
    evaluation = Evaluation.load(tmp_path)
    assert [(c.kind, c.amount) for c in evaluation.conditions] == [
        ("missing", 0.3),
        ("missing", 0.9),
        ("drop_frames", 1.0),
        ("word_errors", 0.5),
    ]
    found = {c: evaluation.find(c, "emotion") for c in (AS_IS, "missing rate 0.3", "missing rate 0.9", "frames dropped 1")}
    scores = {name: row.metrics["accuracy"] for name, row in found.items() if row is not None}
    assert scores["missing rate 0.9"] < scores[AS_IS] - 0.15
    assert scores["frames dropped 1"] < scores[AS_IS] - 0.15
    (area,) = (
        a for a in evaluation.areas if (a.kind, a.task, a.language, a.metric) == ("missing", "emotion", "all", "accuracy")
    )
    by_hand = 0.3 * (scores[AS_IS] + scores["missing rate 0.3"]) / 2
    by_hand += 0.6 * (scores["missing rate 0.3"] + scores["missing rate 0.9"]) / 2
    assert area.area == pytest.approx(by_hand)
    assert f"accuracy AUILC {area.area:.3f} over 0 to 0.9" in str(text)
    kept = load_predictions(tmp_path / "predictions.jsonl")
    assert len({len(p) for p in kept.values()}) == 1
    # Groups can be made again from the file, and damage does not move an utterance to another.
    for name, predictions in kept.items():
        assert [(p.length, p.position) for p in predictions] == [(p.length, p.position) for p in kept[AS_IS]], name
    turns = [row for row in evaluation.rows if row.by == "turn" and row.language == "all" and row.condition == AS_IS]
    for row in turns:
        assert row.n == len([p for p in kept[AS_IS] if p.task == row.task and turn_group(p) == row.subset])
    assert sum(row.n for row in turns if row.task == "emotion") == 32


def test_the_length_is_of_the_own_transcript_and_the_position_counts_from_one(trained: Path, store: Path) -> None:
    config = EvaluateConfig(checkpoint=str(trained), data=[str(store)], conditions=["without:text"], resamples=20)
    _, kept = evaluate(config, progress=False)
    by_id = {u.id: u for u in make_utterances("test", 32)}
    for p in kept["without text"]:
        utterance = by_id[p.id]
        assert utterance.text is not None
        assert p.length == (len(utterance.text) if p.language == "zh" else len(utterance.text.split()))
        assert p.position == (utterance.turn or 0) + 1


def test_two_stores_of_one_name_are_refused(trained: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    config = EvaluateConfig(
        checkpoint=str(trained), data=[str(store), str(tmp_path / "store")], output=str(tmp_path / "out")
    )
    with pytest.raises(UserError, match="both called 'store'"):
        run(config)


def test_noise_is_refused_before_anything_is_predicted_where_features_did_not_come_from_media(
    trained: Path, store: Path, no_prediction: None
) -> None:
    config = EvaluateConfig(checkpoint=str(trained), data=[str(store)], conditions=["audio_snr:10"])
    with pytest.raises(UserError, match="train on a store of `llm-mer extract`"):
        evaluate(config, progress=False)


def test_the_fixture_has_both_languages_so_the_tests_above_mean_something() -> None:
    assert {u.language for u in make_utterances("test", 8)} == {"en", "zh"}


def test_a_limit_draws_over_languages_and_the_evaluation_says_so(trained: Path, store: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(checkpoint=str(trained), data=[str(store)], limit=6, resamples=20, output=str(tmp_path / "out"))
    text = evaluate_checkpoint(config)
    assert text is not None
    said = "6 of 32 utterances, drawn over languages with seed 0 (3 en, 3 zh)"
    assert f"--limit: {said}" in text.splitlines()
    assert Evaluation.load(tmp_path / "out").drawn == said


def test_scores_on_the_training_split_are_said_to_be_that_and_others_are_not(trained: Path, store: Path) -> None:
    for split, said in (("train", True), ("test", False)):
        config = EvaluateConfig(checkpoint=str(trained), data=[str(store)], split=split, limit=4, resamples=5)
        evaluation, _ = evaluate(config, progress=False)
        assert any("is what models are trained on" in warning for warning in evaluation.warnings) == said, split
