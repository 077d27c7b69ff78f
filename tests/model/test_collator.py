"""Batches: padding sides, masks, and labels exactly at answer positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import AUDIO_SIZE, VISION_SIZE, make_utterances

from llm_mer.data.dataset import ContextVectors, MerDataset
from llm_mer.data.schema import Utterance
from llm_mer.model.collator import MerBatch, MerCollator, pad_ids, pad_sequences
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.templates import load_prompts

TASKS = [get_task("emotion"), get_task("sentiment")]


def build(tokenizer: Any, utterances: list[Utterance] | None = None, **options: Any) -> MerCollator:
    chosen: dict[str, Any] = {
        "tokenizer": tokenizer,
        "tasks": TASKS,
        "prompts": load_prompts("short"),
        "feature_sizes": {"text": 48, "audio": AUDIO_SIZE, "vision": VISION_SIZE},
        "statistics": {},
        "num_pseudo_tokens": 3,
        **options,
    }
    return MerCollator(MerDataset(utterances or make_utterances("train", 6), TASKS), MerProcessor(**chosen))


def test_training_batches_are_padded_right_and_labels_stand_exactly_at_the_answers(tokenizer: Any) -> None:
    collator = build(tokenizer)
    questions = collator.dataset.questions
    batch = collator.batch(questions, with_answer=True)
    assert batch.input_ids is not None
    assert batch.labels is not None
    assert batch.attention_mask is not None
    for i, question in enumerate(questions):
        sample = collator.prepare(question, True)
        row = [*sample.prompt.ids, *sample.answer]  # type: ignore[union-attr]
        assert batch.input_ids[i, : len(row)].tolist() == row
        assert batch.attention_mask[i].tolist() == [1] * len(row) + [0] * (batch.input_ids.shape[1] - len(row))
        places = torch.nonzero(batch.labels[i] != -100).flatten().tolist()
        assert places == list(range(len(row) - len(sample.answer), len(row)))
        assert batch.labels[i, places].tolist() == sample.answer == batch.input_ids[i, places].tolist()
        assert batch.labels[i, places[-1]] == tokenizer.eos_token_id
    assert len({int(v) for v in batch.attention_mask.sum(dim=1)}) > 1, "the rows should differ in length"


def test_inference_batches_are_padded_left_and_end_where_the_answer_begins(tokenizer: Any) -> None:
    collator = build(tokenizer)
    questions = collator.dataset.questions
    batch = collator.batch(questions, with_answer=False)
    assert batch.labels is None
    assert batch.class_targets is None
    assert batch.input_ids is not None
    assert batch.attention_mask is not None
    assert bool((batch.attention_mask[:, -1] == 1).all())
    for i, question in enumerate(questions):
        ids = collator.prepare(question, False).prompt.ids  # type: ignore[union-attr]
        assert batch.input_ids[i, -len(ids) :].tolist() == ids
        assert batch.attention_mask[i].sum() == len(ids)


@pytest.mark.parametrize("with_answer", [True, False])
def test_the_pseudo_token_mask_marks_the_fillers_inside_the_prompt(tokenizer: Any, with_answer: bool) -> None:
    collator = build(tokenizer)
    batch = collator.batch(collator.dataset.questions, with_answer)
    assert batch.pseudo_token_mask is not None
    assert batch.input_ids is not None
    assert batch.attention_mask is not None
    assert bool((batch.pseudo_token_mask.sum(dim=1) == 3).all())
    assert bool((batch.input_ids[batch.pseudo_token_mask] == collator.processor.filler_id).all())
    assert bool((batch.attention_mask[batch.pseudo_token_mask] == 1).all())
    for i, question in enumerate(collator.dataset.questions):
        prompt = collator.prepare(question, with_answer).prompt
        assert prompt is not None
        real = torch.nonzero(batch.attention_mask[i]).flatten()
        places = torch.nonzero(batch.pseudo_token_mask[i]).flatten()
        assert (places - real[0]).tolist() == list(range(prompt.start, prompt.start + 3))


def test_a_missing_modality_is_a_row_of_false(tokenizer: Any) -> None:
    utterances = make_utterances("train", 4)
    utterances[0].audio_features = None
    utterances[1].vision_features = None
    utterances[2].text = None
    collator = build(tokenizer, utterances)
    questions = [q for q in collator.dataset.questions if q.task.name == "emotion"]
    inputs = collator.batch(questions, True).model_inputs()
    assert inputs["audio_mask"].any(dim=1).tolist() == [False, True, True, True]
    assert inputs["vision_mask"].any(dim=1).tolist() == [True, False, True, True]
    assert inputs["text_mask"].any(dim=1).tolist() == [True, True, False, True]
    for row, utterance in enumerate(utterances):
        if utterance.audio_features is not None:
            steps = len(utterance.audio_features)
            assert inputs["audio_mask"][row].sum() == steps
            assert np.array_equal(inputs["audio_features"][row, :steps].numpy(), utterance.audio_features)


def test_a_batch_without_any_of_a_modality_still_has_its_tensor(tokenizer: Any) -> None:
    utterances = make_utterances("train", 2)
    for utterance in utterances:
        utterance.audio_features = None
        utterance.text = None
    inputs = build(tokenizer, utterances).batch(build(tokenizer, utterances).dataset.questions, True).model_inputs()
    assert inputs["audio_features"].shape == (4, 1, AUDIO_SIZE)
    assert not inputs["audio_mask"].any()
    assert not inputs["text_mask"].any()


def test_targets_of_the_other_task_are_ignored(tokenizer: Any) -> None:
    collator = build(tokenizer)
    batch = collator.batch(collator.dataset.questions, True)
    assert batch.class_targets is not None
    assert batch.score_targets is not None
    for i, question in enumerate(collator.dataset.questions):
        if question.task.name == "emotion":
            assert int(batch.class_targets[i]) == TASKS[0].label_names.index(str(question.truth))
            assert torch.isnan(batch.score_targets[i])
        else:
            assert int(batch.class_targets[i]) == -100
            assert float(batch.score_targets[i]) == pytest.approx(float(question.truth))  # type: ignore[arg-type]


def test_without_a_tokenizer_a_batch_has_features_and_targets_only(tokenizer: Any) -> None:
    collator = build(None, prompts=[], text_source="features", feature_sizes={"audio": AUDIO_SIZE, "vision": VISION_SIZE})
    inputs = collator([{"question": 0}, {"question": 1}])
    assert set(inputs) == {
        "audio_features",
        "audio_mask",
        "vision_features",
        "vision_mask",
        "class_targets",
        "score_targets",
    }


def test_a_question_asks_with_the_history_of_its_own_dialogue_and_language(tokenizer: Any) -> None:
    collator = build(tokenizer, make_utterances("train", 12), prompts=load_prompts("context"))
    last = max(
        (q for q in collator.dataset.questions if q.task.name == "emotion"),
        key=lambda q: (collator.dataset.utterance(q.row).language == "en", collator.dataset.utterance(q.row).turn or 0),
    )
    prompt = collator.prepare(last, False).prompt
    assert prompt is not None
    text = tokenizer.decode(prompt.ids)
    earlier = collator.dataset.history(last.row, collator.processor.context_turns(last.task, "en"))
    assert earlier
    assert all(said in text for _, said in earlier if said)
    assert not any("\u4e00" <= c <= "\u9fff" for c in text)


def test_context_windows_are_padded_and_marked(tokenizer: Any) -> None:
    utterances = make_utterances("train", 8)
    collator = build(tokenizer, utterances)
    collator.uses_context = True
    questions = [q for q in collator.dataset.questions if q.task.name == "emotion"][:6]
    with pytest.raises(ValueError, match="no context vectors were computed"):
        collator.batch(questions, True)
    vectors = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
    present = np.array([True] * 7 + [False])
    collator.dataset.context = ContextVectors({"audio": vectors}, {"audio": present})
    inputs = collator.batch(questions, True).model_inputs()
    assert "context_vision" not in inputs
    for i, question in enumerate(questions):
        window = collator.dataset.window(question.row)
        size = len(window.rows)
        assert inputs["context_mask"][i].tolist() == [True] * size + [False] * (inputs["context_mask"].shape[1] - size)
        assert window.rows[int(inputs["context_target"][i])] == question.row
        assert int(inputs["context_speakers"][i, int(inputs["context_target"][i])]) == 0
        assert bool((inputs["context_speakers"][i, size:] == -1).all())
        assert np.array_equal(inputs["context_audio"][i, :size].numpy(), vectors[window.rows])
        assert inputs["context_audio_mask"][i, :size].tolist() == present[window.rows].tolist()


def test_padding_helpers_pad_to_the_longest() -> None:
    features, mask = pad_sequences([np.ones((2, 3)), None, np.ones((1, 3))], 3)
    assert features.shape == (3, 2, 3)
    assert mask.tolist() == [[True, True], [False, False], [True, False]]
    assert float(features[1].abs().sum() + features[2, 1].abs().sum()) == 0.0
    assert pad_ids([[5, 6], [7]], 0)[0].tolist() == [[5, 6], [7, 0]]
    assert pad_ids([[5, 6], [7]], 0, left=True)[0].tolist() == [[5, 6], [0, 7]]
    ids, mask = pad_ids([[], []], 9)
    assert ids.tolist() == [[9], [9]]
    assert not mask.any()


def test_a_batch_moves_whole_and_leaves_out_what_is_not_there() -> None:
    batch = MerBatch(text_ids=torch.zeros(1, 2)).to("cpu")
    assert set(batch.model_inputs()) == {"text_ids"}
