"""The processor: prompts fit, histories are cut from their beginning, answers and features are what they should be."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from conftest import AUDIO_SIZE, make_utterances

from llm_mer.data.schema import Utterance
from llm_mer.data.statistics import FeatureStatistics
from llm_mer.errors import UserError
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.rendering import HistoryTurn
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.templates import load_prompts

EMOTION, SENTIMENT = get_task("emotion"), get_task("sentiment")


def build(tokenizer: Any, **options: Any) -> MerProcessor:
    chosen: dict[str, Any] = {
        "tokenizer": tokenizer,
        "tasks": [EMOTION, SENTIMENT],
        "prompts": load_prompts("short"),
        "feature_sizes": {"text": 48, "audio": AUDIO_SIZE},
        "statistics": {},
        "num_pseudo_tokens": 3,
        **options,
    }
    return MerProcessor(**chosen)


def test_a_prompt_holds_the_pseudo_token_places_between_its_two_halves(tokenizer: Any) -> None:
    processor = build(tokenizer)
    prompt = processor.encode_prompt(EMOTION, "en", "the train leaves at nine", [])
    assert prompt.count == 3
    assert prompt.ids[0] == tokenizer.bos_token_id
    assert prompt.ids[prompt.start : prompt.start + 3] == [processor.filler_id] * 3
    before = tokenizer.decode(prompt.ids[1 : prompt.start])
    after = tokenizer.decode(prompt.ids[prompt.start + 3 :])
    assert before.strip() == "signal:"
    assert after.startswith("\n") or after.strip().startswith("text: the train leaves at nine")
    assert after.strip().endswith("emotion:")


def test_without_a_transcript_the_prompt_says_so(tokenizer: Any) -> None:
    found = tokenizer.decode(build(tokenizer).encode_prompt(EMOTION, "en", None, []).ids)
    assert "(none)" in found


@pytest.mark.parametrize(("language", "word"), [("en", "joy"), ("zh", "高兴")])
def test_the_answer_is_the_word_of_the_language_and_the_end_token(tokenizer: Any, language: str, word: str) -> None:
    utterance = Utterance(id="a", language=language, text="text")
    sample = build(tokenizer).prepare(utterance, EMOTION, "joy")
    assert sample.answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(sample.answer[:-1]).strip() == word
    assert sample.class_target == EMOTION.label_names.index("joy")
    assert np.isnan(sample.score_target)


def test_a_score_is_answered_as_a_number_and_is_the_regression_target(tokenizer: Any) -> None:
    sample = build(tokenizer).prepare(Utterance(id="a", text="text"), SENTIMENT, -1.25)
    assert tokenizer.decode(sample.answer[:-1]).replace(" ", "") == "-1.2"
    assert sample.score_target == -1.25
    assert sample.class_target == -100


def test_a_question_without_truth_has_no_answer_and_no_target(tokenizer: Any) -> None:
    sample = build(tokenizer).prepare(Utterance(id="a", text="text"), EMOTION, None)
    assert sample.answer == []
    assert sample.class_target == -100


def test_training_answers_and_scored_answers_are_the_same_tokens(tokenizer: Any) -> None:
    processor = build(tokenizer)
    for task, truths in ((EMOTION, EMOTION.label_names), (SENTIMENT, SENTIMENT.grid())):
        for language in ("en", "zh"):
            scored = processor.answers(task, language)
            assert len(scored) == len(truths)
            for truth, tokens in zip(truths, scored, strict=True):
                sample = processor.prepare(Utterance(id="a", language=language, text="x"), task, truth)
                assert sample.answer == [*tokens, processor.end_token_id]


def test_answers_that_become_the_same_tokens_are_refused(tokenizer: Any) -> None:
    from llm_mer.prompting.tasks import Label, Task

    twins = (Label("a", {"en": "the   train"}), Label("b", {"en": "the train"}))
    task = Task("twins", "classification", "twins", twins)
    with pytest.raises(UserError, match="writes 'the train' like 'the   train'"):
        build(tokenizer, tasks=[task]).answers(task, "en")


def test_an_answer_that_holds_the_end_token_is_refused(tokenizer: Any) -> None:
    from llm_mer.prompting.tasks import Task

    end = tokenizer.eos_token
    entry = {"kind": "classification", "labels": [{"name": "a", "en": f"the {end} train"}, {"name": "b", "en": "train"}]}
    task = Task.from_dict("ends", entry)
    with pytest.raises(UserError, match="holds the token that ends an answer; use another word"):
        build(tokenizer, tasks=[task]).answers(task, "en")


def test_a_long_history_loses_its_earliest_turns_first(tokenizer: Any) -> None:
    processor = build(tokenizer, prompts=load_prompts("context"))
    template = next(p for p in processor.prompts if p.language == "en" and p.kind == "classification")
    assert template.context_turns > 1
    turns = [HistoryTurn("A", f"number {i} {'the book has many pages ' * 3}") for i in range(template.context_turns)]
    whole = processor.encode_prompt(EMOTION, "en", "we meet on monday", turns)
    processor.max_prompt_tokens = len(whole.ids) - 1
    shorter = processor.encode_prompt(EMOTION, "en", "we meet on monday", turns)
    text = tokenizer.decode(shorter.ids)
    assert len(shorter.ids) < len(whole.ids)
    assert "number 0" not in text.replace(" ", "").replace("number", "number ")
    assert "we meet on monday" in text
    assert shorter.ids[shorter.start : shorter.start + 3] == [processor.filler_id] * 3
    dropped = processor.encode_prompt(EMOTION, "en", "we meet on monday", turns[1:])
    assert shorter.ids == dropped.ids


def test_only_the_last_turns_a_template_shows_are_used(tokenizer: Any) -> None:
    processor = build(tokenizer, prompts=load_prompts("context"))
    shown = processor.context_turns(EMOTION, "en")
    turns = [HistoryTurn("A", f"turn {i}") for i in range(shown + 3)]
    assert (
        processor.encode_prompt(EMOTION, "en", "x", turns).ids
        == processor.encode_prompt(EMOTION, "en", "x", turns[-shown:]).ids
    )
    assert build(tokenizer).context_turns(EMOTION, "en") == 0


def test_a_prompt_that_cannot_be_shortened_is_an_error_with_both_lengths(tokenizer: Any) -> None:
    processor = build(tokenizer, max_prompt_tokens=12)
    utterance = Utterance(id="long-one", text="the book has many pages " * 4)
    with pytest.raises(UserError, match=r"utterance 'long-one': the prompt has \d+ tokens, max_prompt_tokens is 12"):
        processor.prepare(utterance, EMOTION, "joy")


def test_transcript_audio_and_vision_are_cut_to_their_limits(tokenizer: Any) -> None:
    processor = build(tokenizer, max_text_tokens=3, max_audio_steps=2)
    utterance = Utterance(id="a", text="the book has many pages", audio_features=np.ones((5, AUDIO_SIZE), np.float32))
    sample = processor.prepare(utterance, EMOTION, None)
    assert sample.text_ids == processor.encode("the book has many pages")[:3]
    assert sample.features["audio"].shape == (2, AUDIO_SIZE)


def test_features_of_another_size_are_refused_with_both_sizes(tokenizer: Any) -> None:
    utterance = Utterance(id="odd", text="x", audio_features=np.ones((5, AUDIO_SIZE + 1), np.float32))
    with pytest.raises(UserError, match=r"utterance 'odd': audio_features has shape \(5, 7\).*trained on 6 features"):
        build(tokenizer).prepare(utterance, EMOTION, None)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((0, AUDIO_SIZE)), r"audio_features has shape \(0, 6\), which is empty"),
        (np.full((2, AUDIO_SIZE), np.nan), "holds NaN or infinity"),
        (np.full((2, AUDIO_SIZE), -np.inf), "holds NaN or infinity"),
        (np.full((2, AUDIO_SIZE), 1e300), "holds NaN or infinity in float32"),
    ],
)
def test_empty_features_and_features_that_are_not_finite_are_refused(
    features: np.ndarray, message: str, tokenizer: Any
) -> None:
    with pytest.raises(UserError, match=f"utterance 'odd': .*{message}"):
        build(tokenizer).features(Utterance(id="odd", text="x", audio_features=features))


def test_features_are_normalised_by_the_training_statistics_and_missing_ones_stay_missing(tokenizer: Any) -> None:
    from llm_mer.data.statistics import RunningStatistics

    running = RunningStatistics()
    values = np.random.default_rng(0).normal(3.0, 2.0, size=(200, AUDIO_SIZE)).astype(np.float32)
    running.update(values)
    processor = build(tokenizer, statistics={"audio": running.result()})
    sample = processor.prepare(Utterance(id="a", text="x", audio_features=values), EMOTION, None)
    assert np.abs(sample.features["audio"].mean(axis=0)).max() < 1e-3
    assert "audio" not in processor.prepare(Utterance(id="b", text="x"), EMOTION, None).features


def test_text_comes_from_features_when_told_so(tokenizer: Any) -> None:
    processor = build(tokenizer, text_source="features", feature_sizes={"text": 4})
    utterance = Utterance(id="a", text="the table", text_features=np.ones((3, 4), np.float32))
    sample = processor.prepare(utterance, EMOTION, None)
    assert sample.text_ids is None
    assert sample.features["text"].shape == (3, 4)


def test_without_a_tokenizer_there_is_no_prompt(tokenizer: Any) -> None:
    processor = build(None, prompts=[], feature_sizes={"audio": AUDIO_SIZE})
    sample = processor.prepare(make_utterances("train", 1)[0], EMOTION, "joy")
    assert sample.prompt is None
    assert sample.answer == []
    assert sample.class_target == 1
    assert processor.context_turns(EMOTION, "en") == 0


def test_a_tokenizer_without_a_pad_token_is_refused(tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    with pytest.raises(UserError, match="no pad token"):
        build(bare)


def test_a_chat_template_wraps_the_prompt_around_the_pseudo_tokens(tokenizer: Any) -> None:
    import copy

    chat = copy.deepcopy(tokenizer)
    turns = (
        "{% for m in messages %}<{{ {'assistant': 'answer'}.get(m['role'], m['role']) }}> {{ m['content'] }} {% endfor %}"
    )
    chat.chat_template = turns + "{% if add_generation_prompt %}<answer>{% endif %}"
    processor = build(chat)
    assert processor.uses_chat
    prompt = processor.encode_prompt(EMOTION, "en", "the table", [])
    text = chat.decode(prompt.ids)
    assert prompt.ids[prompt.start : prompt.start + 3] == [processor.filler_id] * 3
    assert text.index("user") < text.index("signal")
    assert text.rstrip().endswith("answer>")
    assert not build(chat, chat="never").uses_chat
    plain = build(chat, chat="never").encode_prompt(EMOTION, "en", "the table", [])
    assert plain.ids == build(tokenizer).encode_prompt(EMOTION, "en", "the table", []).ids


def test_a_processor_reads_back_from_plain_containers(tokenizer: Any) -> None:
    statistics = FeatureStatistics.from_dict({"mean": [0.0] * AUDIO_SIZE, "std": [1.0] * AUDIO_SIZE})
    processor = build(tokenizer, statistics={"audio": statistics}, max_audio_steps=17, chat="never")
    entry = json.loads(json.dumps(processor.to_dict(), ensure_ascii=False))
    again = MerProcessor.from_dict(entry, tokenizer)
    assert again.to_dict() == processor.to_dict()
    assert again.tasks == processor.tasks
    assert again.prompts == processor.prompts
