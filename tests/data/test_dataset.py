"""Questions, conversation windows, history, and datasets with modalities shuffled or missing."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from llm_mer.data.dataset import MerDataset, Window, build_context_vectors
from llm_mer.data.schema import Utterance
from llm_mer.data.store import UtteranceStore, write_store
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task

EMOTION, SENTIMENT = get_task("emotion"), get_task("sentiment")
MODALITIES = ("text", "audio", "vision")


def plain(name: str, **fields: object) -> Utterance:
    return Utterance(**{"id": name, "language": "en", "text": name, "labels": {"emotion": "joy"}, **fields})  # type: ignore[arg-type]


def dialogue(length: int, name: str = "d", **fields: object) -> list[Utterance]:
    return [plain(f"{name}{i}", dialogue_id=name, turn=i, speaker="AB"[i % 2], **fields) for i in range(length)]


def numbered(count: int, languages: str = "en") -> list[Utterance]:
    """Utterances whose every modality says which row it came from."""
    chosen = languages.split()
    return [
        Utterance(
            id=f"u{i}",
            language=chosen[i % len(chosen)],
            text=f"text {i}",
            text_features=np.full((2, 3), i, dtype=np.float32),
            audio_features=np.full((2, 3), i, dtype=np.float32),
            vision_features=np.full((2, 3), i, dtype=np.float32),
            labels={"emotion": "joy"},
        )
        for i in range(count)
    ]


def source_rows(dataset: MerDataset, modality: str) -> list[int]:
    rows = range(len(dataset.utterances))
    return [int(getattr(dataset.utterance(r), f"{modality}_features")[0, 0]) for r in rows]


def vectors_of(dataset: MerDataset, modalities: tuple[str, ...] = ("audio",)) -> None:
    dataset.context = build_context_vectors(dataset, lambda _, x: x, None, modalities)


# --- questions --------------------------------------------------------------------------------------------------------


def test_each_task_is_asked_of_every_utterance_that_has_its_target() -> None:
    utterances = [
        plain("a", labels={"emotion": "anger", "sentiment": -2.5}),
        plain("b", labels={"sentiment": "0.5"}),
        plain("c", labels={}),
        plain("d", labels={"emotion": "高兴"}),
    ]
    dataset = MerDataset(utterances, [EMOTION, SENTIMENT])
    asked = [(q.row, q.task.name, q.truth) for q in dataset.questions]
    assert asked == [(0, "emotion", "anger"), (0, "sentiment", -2.5), (1, "sentiment", 0.5), (3, "emotion", "joy")]
    assert len(dataset) == 4
    assert dataset.truths(EMOTION) == ["anger", "joy"]
    assert dataset.truths(SENTIMENT) == [-2.5, 0.5]


def test_without_require_truth_every_task_is_asked_of_every_utterance() -> None:
    dataset = MerDataset([plain("a"), plain("b", labels={})], [EMOTION, SENTIMENT], require_truth=False)
    assert [(q.row, q.truth) for q in dataset.questions] == [(0, "joy"), (0, None), (1, None), (1, None)]
    assert dataset.truths(EMOTION) == ["joy"]


def test_aliases_become_canonical_names() -> None:
    dataset = MerDataset([plain("a", labels={"emotion": "excited"})], [get_task("iemocap4")])
    assert dataset.questions[0].truth == "happy"
    assert MerDataset(dataset.utterances, [get_task("iemocap6")]).questions[0].truth == "excited"


def test_an_ignored_label_asks_no_question_but_its_utterance_stays_in_windows() -> None:
    utterances = dialogue(4)
    for utterance, label in zip(utterances, ("angry", "frustrated", "xxx", "excited"), strict=True):
        utterance.labels["emotion"] = label
    task = get_task("iemocap4")
    dataset = MerDataset(utterances, [task])
    assert [(q.row, q.truth) for q in dataset.questions] == [(0, "angry"), (3, "happy")]
    assert dataset.window(3).rows == [0, 1, 2, 3]
    assert dataset.history(3, 2) == [("B", "d1"), ("A", "d2")]
    # Asked about all the same where no truth is needed, e.g. by infer.py.
    asked = MerDataset(utterances, [task], require_truth=False)
    assert [q.truth for q in asked.questions] == ["angry", None, None, "happy"]


def test_labels_spoken_are_every_label_of_a_speaker_in_a_dialogue_in_turn_order() -> None:
    labels = ["angry", "frustrated", " frustrated", "excited", "sad", "sad"]
    utterances = dialogue(6)
    for utterance, label in zip(utterances, labels, strict=True):
        utterance.labels["emotion"] = label
    utterances[4].speaker = None
    utterances += [plain("alone", labels={"emotion": "sad"}, speaker="A"), *dialogue(1, "e", labels={})]
    dataset = MerDataset(utterances[::-1], [get_task("iemocap4")])
    states, speakers, dialogues = dataset.labels_by_turn(get_task("iemocap4"))
    assert states == ["angry", "frustrated", "frustrated", "happy", "sad"]
    assert speakers == ["A", "B", "A", "B", "B"]
    assert set(dialogues) == {"d/en"}


def test_languages_select_utterances_in_order() -> None:
    utterances = [plain(str(i), language="zh" if i % 2 else "en") for i in range(8)]
    assert [q.row for q in MerDataset(utterances, [EMOTION], languages=["zh"]).questions] == [1, 3, 5, 7]
    assert MerDataset(utterances, [EMOTION], languages=["en", "zh"]).rows == list(range(8))


def test_a_limit_draws_every_language_in_proportion_and_keeps_the_order() -> None:
    utterances = [plain(str(i), language="en" if i < 30 else "zh") for i in range(40)]
    dataset = MerDataset(utterances, [EMOTION], limit=8)
    assert [q.row for q in dataset.questions] == dataset.rows == sorted(dataset.rows)
    assert [dataset.language(row) for row in dataset.rows] == ["en"] * 6 + ["zh"] * 2
    assert dataset.rows != list(range(8))
    assert dataset.rows == MerDataset(utterances, [EMOTION], limit=8).rows
    assert dataset.rows != MerDataset(utterances, [EMOTION], limit=8, limit_seed=1).rows
    assert dataset.drawn == "8 of 40 utterances, drawn over languages with seed 0 (6 en, 2 zh)"
    chinese = MerDataset(utterances, [EMOTION], languages=["zh"], limit=2)
    assert len(chinese.rows) == 2
    assert {chinese.language(row) for row in chinese.rows} == {"zh"}
    assert MerDataset(utterances, [EMOTION], limit=40).rows == list(range(40))
    assert MerDataset(utterances, [EMOTION], limit=99).drawn is None
    with pytest.raises(UserError, match="limit is 0; it must be at least 1"):
        MerDataset(utterances, [EMOTION], limit=0)


def test_a_language_of_one_utterance_is_among_those_drawn_where_there_is_room() -> None:
    utterances = [plain(str(i), language="zh" if i == 99 else "en") for i in range(100)]
    assert 99 in MerDataset(utterances, [EMOTION], limit=2).rows
    assert 99 not in MerDataset(utterances, [EMOTION], limit=1).rows


def test_what_a_limit_left_out_parts_a_dialogue_in_two() -> None:
    utterances = dialogue(6, "d")
    whole = MerDataset(utterances, [EMOTION]).labels_by_turn(EMOTION)
    assert set(whole[2]) == {"d/en"}
    drawn = MerDataset(utterances, [EMOTION], limit=4, limit_seed=3)
    gaps = [sum(earlier not in drawn.rows for earlier in range(row)) for row in drawn.rows]
    assert len(set(gaps)) > 1
    assert drawn.labels_by_turn(EMOTION)[2] == [f"d/en/{gap}" if gap else "d/en" for gap in gaps]


def test_an_unknown_label_names_the_utterance_the_value_and_the_task() -> None:
    with pytest.raises(UserError, match=r"'odd'.*'boredom'.*'emotion'"):
        MerDataset([plain("fine"), plain("odd", labels={"emotion": "boredom"})], [EMOTION])


@pytest.mark.parametrize("value", [3.5, "much", float("nan"), None])
def test_a_score_that_is_no_number_in_range_names_the_utterance(value: object) -> None:
    with pytest.raises(UserError, match=r"'odd'.*'sentiment'"):
        MerDataset([plain("odd", labels={"sentiment": value})], [SENTIMENT])


def test_a_stores_split_and_a_list_make_the_same_questions_and_windows(tmp_path: Path) -> None:
    utterances = [*dialogue(5), *dialogue(3, "e", language="zh"), plain("alone", labels={"emotion": "anger"})]
    table = UtteranceStore.open(write_store(utterances, tmp_path / "store")).split("train")
    stored, listed = MerDataset(table, [EMOTION]), MerDataset(utterances, [EMOTION])
    assert [(q.row, q.truth) for q in stored.questions] == [(q.row, q.truth) for q in listed.questions]
    assert [stored.window(r) for r in range(9)] == [listed.window(r) for r in range(9)]
    assert stored.history(4, 3) == listed.history(4, 3)


# --- windows and history ----------------------------------------------------------------------------------------------


def test_a_causal_window_is_the_last_utterances_up_to_the_target() -> None:
    dataset = MerDataset(dialogue(6), [EMOTION], context_window=3)
    assert [dataset.window(r) for r in range(6)] == [
        Window([0], 0),
        Window([0, 1], 1),
        Window([0, 1, 2], 2),
        Window([1, 2, 3], 2),
        Window([2, 3, 4], 2),
        Window([3, 4, 5], 2),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 9])
def test_a_bidirectional_window_is_full_where_the_dialogue_allows_and_holds_its_target(size: int) -> None:
    dataset = MerDataset(dialogue(6), [EMOTION], context_window=size, bidirectional=True)
    for row in range(6):
        window = dataset.window(row)
        assert window.rows[window.target] == row
        assert window.rows == list(range(window.rows[0], window.rows[0] + min(size, 6)))


def test_a_bidirectional_window_is_centred_away_from_the_ends() -> None:
    dataset = MerDataset(dialogue(9), [EMOTION], context_window=5, bidirectional=True)
    assert dataset.window(4) == Window([2, 3, 4, 5, 6], 2)
    assert dataset.window(0) == Window([0, 1, 2, 3, 4], 0)
    assert dataset.window(8) == Window([4, 5, 6, 7, 8], 4)


def test_a_causal_window_never_sees_what_comes_later() -> None:
    shuffled = [dialogue(12)[i] for i in np.random.default_rng(0).permutation(12)]
    dataset = MerDataset(shuffled, [EMOTION], context_window=5)
    for row in range(12):
        turns = [shuffled[r].turn for r in dataset.window(row).rows]
        assert turns == sorted(turns)
        assert turns[-1] == shuffled[row].turn


def test_windows_follow_turns_not_rows_and_stay_inside_their_dialogue() -> None:
    utterances = [
        plain("b1", dialogue_id="b", turn=1),
        plain("a9", dialogue_id="a", turn=9),
        plain("b0", dialogue_id="b", turn=0),
        plain("a2", dialogue_id="a", turn=2),
        plain("lone"),
    ]
    dataset = MerDataset(utterances, [EMOTION])
    assert dataset.window(0) == Window([2, 0], 1)
    assert dataset.window(1) == Window([3, 1], 1)
    assert dataset.window(4) == Window([4], 0)


def test_one_dialogue_in_two_languages_is_two_conversations() -> None:
    utterances = [*dialogue(3), *dialogue(3, language="zh")]
    dataset = MerDataset(utterances, [EMOTION])
    assert dataset.window(2).rows == [0, 1, 2]
    assert dataset.window(5).rows == [3, 4, 5]


def test_a_dialogue_without_turn_is_an_error_naming_it() -> None:
    with pytest.raises(UserError, match=r"'talk'.*turn"):
        MerDataset([plain("a", dialogue_id="talk", turn=0), plain("b", dialogue_id="talk")], [EMOTION])


def test_history_is_the_earlier_turns_oldest_first() -> None:
    dataset = MerDataset(dialogue(5), [EMOTION])
    assert dataset.history(4, 2) == [("A", "d2"), ("B", "d3")]
    assert dataset.history(1, 5) == [("A", "d0")]
    assert dataset.history(0, 5) == []
    assert dataset.history(4, 0) == []


def test_history_keeps_unknown_speakers_and_texts_as_none() -> None:
    utterances = [
        plain("a", dialogue_id="d", turn=0, text=None, audio_features=np.ones((1, 2), dtype=np.float32)),
        plain("b", dialogue_id="d", turn=1, speaker="B"),
    ]
    assert MerDataset(utterances, [EMOTION]).history(1, 3) == [(None, None)]


def test_the_targets_speaker_is_zero_and_others_count_up_as_they_appear() -> None:
    speakers = ["B", None, "C", "A", "B", "A"]
    utterances = [plain(str(i), dialogue_id="d", turn=i, speaker=s) for i, s in enumerate(speakers)]
    dataset = MerDataset(utterances, [EMOTION])
    assert dataset.speaker_indices(dataset.window(5)) == [1, -1, 2, 0, 1, 0]
    assert dataset.speaker_indices(dataset.window(4)) == [0, -1, 1, 2, 0]
    assert dataset.speaker_indices(dataset.window(1)) == [1, -1]


# --- shuffled and missing modalities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_is_a_derangement_within_the_language(seed: int) -> None:
    utterances = numbered(21, "en zh zh")
    rows = source_rows(MerDataset(utterances, [EMOTION]).shuffled(["audio"], seed), "audio")
    assert sorted(rows) == list(range(21))
    for row, source in enumerate(rows):
        assert source != row
        assert utterances[source].language == utterances[row].language


def test_shuffled_moves_only_the_named_modalities_and_those_together() -> None:
    dataset = MerDataset(numbered(10), [EMOTION]).shuffled(["audio", "text"], 1)
    assert source_rows(dataset, "vision") == list(range(10))
    assert source_rows(dataset, "audio") == source_rows(dataset, "text")
    for row, source in enumerate(source_rows(dataset, "text")):
        found = dataset.utterance(row)
        assert (found.id, found.text, found.labels) == (f"u{row}", f"text {source}", {"emotion": "joy"})


def test_shuffling_is_reproducible_by_its_seed() -> None:
    dataset = MerDataset(numbered(20), [EMOTION])
    assert source_rows(dataset.shuffled(["audio"], 3), "audio") == source_rows(dataset.shuffled(["audio"], 3), "audio")
    assert source_rows(dataset.shuffled(["audio"], 3), "audio") != source_rows(dataset.shuffled(["audio"], 4), "audio")


def test_shuffling_leaves_the_questions_and_the_original_alone() -> None:
    dataset = MerDataset(numbered(10), [EMOTION], limit=6)
    shuffled = dataset.shuffled(["audio"], 0)
    assert shuffled.questions == dataset.questions
    assert source_rows(dataset, "audio") == list(range(10))
    among = source_rows(shuffled, "audio")
    assert sorted(among[row] for row in dataset.rows) == dataset.rows  # only among the utterances asked about


def test_one_shuffle_after_another_keeps_both() -> None:
    dataset = MerDataset(numbered(10), [EMOTION])
    both = dataset.shuffled(["audio"], 0).shuffled(["vision"], 1)
    assert source_rows(both, "audio") == source_rows(dataset.shuffled(["audio"], 0), "audio")
    assert source_rows(both, "vision") == source_rows(dataset.shuffled(["vision"], 1), "vision")


def test_without_hides_the_modality_and_its_transcript() -> None:
    dataset = MerDataset(numbered(3), [EMOTION])
    silent = dataset.without(["audio"]).without(["text"])
    found = silent.utterance(1)
    assert found.audio_features is None
    assert found.text_features is None
    assert found.text is None
    assert found.vision_features is not None
    assert silent.questions == dataset.questions
    assert dataset.utterance(1).text == "text 1"


def test_without_wins_over_shuffled() -> None:
    dataset = MerDataset(numbered(4), [EMOTION])
    for both in (dataset.shuffled(["audio"], 0).without(["audio"]), dataset.without(["audio"]).shuffled(["audio"], 0)):
        assert both.utterance(0).audio_features is None


def test_history_shows_no_transcript_that_is_hidden_and_a_shuffled_one_where_it_is_shuffled() -> None:
    dataset = MerDataset(dialogue(4), [EMOTION])
    assert dataset.without(["text"]).history(3, 2) == [("B", None), ("A", None)]
    assert dataset.without(["audio"]).history(3, 2) == dataset.history(3, 2)
    shuffled = dataset.shuffled(["text"], 0)
    assert shuffled.history(3, 3) == [("ABA"[r], shuffled.utterance(r).text) for r in range(3)]
    assert shuffled.history(3, 3) != dataset.history(3, 3)


def test_the_transcript_and_the_features_are_shuffled_apart() -> None:
    features = {f"{m}_features": [np.full((2, 3), i, np.float32) for i in range(6)] for m in ("text", "audio", "vision")}
    utterances = [
        dataclasses.replace(u, text=f"words {i}", **{name: arrays[i] for name, arrays in features.items()})
        for i, u in enumerate(numbered(6))
    ]
    dataset = MerDataset(utterances, [EMOTION])
    words, rest = dataset.shuffled(["transcript"], 0), dataset.shuffled(["features"], 0)
    for row, own in enumerate(utterances):
        assert words.utterance(row).text != own.text
        assert rest.utterance(row).text == own.text
        for name in features:
            assert (getattr(words.utterance(row), name) == row).all()
            assert (getattr(rest.utterance(row), name) != row).all()


def test_context_vectors_of_the_whole_dataset_are_not_carried_to_one_that_lacks_a_modality() -> None:
    dataset = MerDataset(numbered(6), [EMOTION])
    vectors_of(dataset)
    for changed in (dataset.without(["audio"]), dataset.shuffled(["audio"], 0)):
        assert changed.context is None
    assert dataset.context is not None


# --- context vectors --------------------------------------------------------------------------------------------------


def test_context_vectors_are_not_made_of_nan() -> None:
    utterances = dialogue(2)
    utterances[1].audio_features = np.array([[1.0, np.nan]], np.float32)
    dataset = MerDataset(utterances, [EMOTION])
    with pytest.raises(UserError, match=f"utterance {utterances[1].id!r}: audio_features holds NaN or infinity"):
        build_context_vectors(dataset, lambda _, x: x, None, ("audio",))


def test_context_vectors_are_mean_and_deviation_over_time_of_the_normalised_sequence() -> None:
    frames = np.array([[1.0, 2.0], [3.0, 6.0]], dtype=np.float32)
    utterances = [plain("a", audio_features=frames), plain("b"), plain("c", audio_features=frames[:1])]
    dataset = MerDataset(utterances, [EMOTION])
    context = build_context_vectors(dataset, lambda _, x: x * 10, None, ("audio",))
    assert context.vectors["audio"].tolist() == [[20.0, 40.0, 10.0, 20.0], [0.0] * 4, [10.0, 20.0, 0.0, 0.0]]
    assert context.present["audio"].tolist() == [True, False, True]
    assert context.sizes == {"audio": 4}


def test_utterance_level_features_keep_just_their_one_step() -> None:
    utterances = [plain(str(i), audio_features=np.full((1, 3), i, dtype=np.float32)) for i in range(3)]
    context = build_context_vectors(MerDataset(utterances, [EMOTION]), lambda _, x: x, None, ("audio", "vision"))
    assert context.vectors["audio"].tolist() == [[0.0] * 3, [1.0] * 3, [2.0] * 3]
    assert "vision" not in context.vectors


def test_the_sizes_an_adapter_was_built_for_decide_whether_a_vector_has_the_deviation() -> None:
    single = MerDataset([plain("a", audio_features=np.ones((1, 2), dtype=np.float32))], [EMOTION])
    several = MerDataset([plain("a", audio_features=np.array([[1, 1], [3, 5]], dtype=np.float32))], [EMOTION])

    def vectors(dataset: MerDataset, size: int) -> list[list[float]]:
        found = build_context_vectors(dataset, lambda _, x: x, None, ("audio",), {"audio": size}, {"audio": 2})
        return found.vectors["audio"].tolist()

    assert vectors(single, 2) == [[1.0, 1.0]]
    assert vectors(single, 4) == [[1.0, 1.0, 0.0, 0.0]]
    assert vectors(several, 2) == [[2.0, 3.0]]
    assert vectors(several, 4) == [[2.0, 3.0, 1.0, 2.0]]
    with pytest.raises(UserError, match="vectors of audio have size 4, the model was trained on 5"):
        vectors(single, 5)
    wrong = MerDataset([plain("odd", audio_features=np.ones((1, 4), dtype=np.float32))], [EMOTION])
    with pytest.raises(UserError, match=r"'odd': audio_features has shape \(1, 4\), the model was trained on 2"):
        vectors(wrong, 4)


def test_text_vectors_come_from_the_embedder_one_for_each_text_there_is() -> None:
    audio = np.ones((1, 2), dtype=np.float32)
    utterances = [plain("one"), plain("b", text=None, audio_features=audio), plain("three")]
    seen: list[list[str]] = []

    def embed(texts: list[str]) -> np.ndarray:
        seen.append(texts)
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    context = build_context_vectors(MerDataset(utterances, [EMOTION]), lambda _, x: x, embed, ("text",))
    assert seen == [["one", "three"]]
    assert context.vectors["text"].tolist() == [[3.0, 1.0], [0.0, 0.0], [5.0, 1.0]]
    assert context.present["text"].tolist() == [True, False, True]


def test_context_vectors_see_permuted_and_hidden_modalities() -> None:
    dataset = MerDataset(numbered(5), [EMOTION])
    shuffled = dataset.shuffled(["audio"], 2)
    context = build_context_vectors(shuffled, lambda _, x: x, None, ("audio",))
    assert context.vectors["audio"][:, 0].tolist() == source_rows(shuffled, "audio")
    assert build_context_vectors(dataset.without(["audio"]), lambda _, x: x, None, ("audio",)).vectors == {}
