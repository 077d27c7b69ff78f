"""Answered examples before each prompt: which they are, and that answers have the probability of the whole text."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_mer.backbones.loading import load_backbone
from llm_mer.cli.main import main
from llm_mer.data.store import UtteranceStore
from llm_mer.evaluation.evaluate import evaluate
from llm_mer.evaluation.options import EvaluateConfig
from llm_mer.inference.few_shot import draw_examples
from llm_mer.inference.untuned import LONGEST_PROMPT, limit_prompts, load_untuned
from llm_mer.prompting.rendering import AnsweredPrompt, render, render_chat
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.templates import load_prompts, select_prompt


def test_labels_are_drawn_in_turn_and_scores_over_their_range() -> None:
    generator = np.random.default_rng(0)
    labels = ["joy"] * 50 + ["anger"] * 5 + ["sadness"] * 2
    drawn = draw_examples(labels, 9, generator)
    assert Counter(labels[row] for row in drawn) == {"joy": 4, "anger": 3, "sadness": 2}
    assert len(set(drawn)) == 9
    scores = [float(score) for score in np.random.default_rng(1).permutation(100)]
    ranks = sorted(int(scores[row]) // 10 for row in draw_examples(scores, 10, generator))
    assert ranks == list(range(10))
    assert sorted(draw_examples(labels[:3], 5, generator)) == [0, 1, 2]
    assert draw_examples(labels, 9, np.random.default_rng(7)) == draw_examples(labels, 9, np.random.default_rng(7))
    assert draw_examples(labels, 9, np.random.default_rng(7)) != draw_examples(labels, 9, np.random.default_rng(8))


@pytest.mark.parametrize("task_name", ["emotion", "sentiment"])
def test_every_answer_has_the_probability_of_a_whole_forward_over_examples_and_prompt(
    task_name: str, backbones: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        backbone=str(backbones["llama"]),
        data=[str(store)],
        output=str(tmp_path / "out"),
        tasks=[task_name],
        prompts=["short"],
        examples=3,
        limit=4,
        resamples=20,
    )
    evaluation, by_condition = evaluate(config, progress=False)
    task, opened = get_task(task_name), UtteranceStore.open(store)
    known = {u.id: u for u in opened.split("train")}
    texts = {u.id: u.text for u in opened.split("test")}
    loaded = load_backbone(backbones["llama"])
    tokenizer = loaded.tokenizer

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    opening = [i for i in tokenizer("", add_special_tokens=True)["input_ids"] if i != tokenizer.eos_token_id]
    for prediction in by_condition["as is"]:
        template = select_prompt(load_prompts(["short"]), task, prediction.language)
        shown = ""
        for identifier in evaluation.checkpoint["examples"][task_name][prediction.language]:
            example = known[identifier]
            truth = example.labels[task.target]
            answer = task.answer_text(truth, prediction.language, template.answer)
            shown += template.prefix + template.suffix + template.task.format(transcript=example.text) + answer + "\n\n"
        # Where pseudo tokens would stand, between prefix and suffix, the tokenizer sees two texts.
        asked = encode(template.suffix + template.task.format(transcript=texts[prediction.id]))
        prompt = opening + encode(shown + template.prefix) + asked
        (end,) = set(encode("\n\n")[:1])
        scores = []
        for text in task.answers(prediction.language, template.answer):
            ids = [*encode(text), end]
            with torch.no_grad():
                logits = loaded.model(torch.tensor([prompt + ids])).logits[0].double()
            steps = torch.log_softmax(logits, dim=-1)
            scores.append(float(sum(steps[len(prompt) - 1 + i, token] for i, token in enumerate(ids))))
        expected = np.array(scores) - np.logaddexp.reduce(scores)
        np.testing.assert_allclose(prediction.log_probabilities, expected, atol=2e-4)


def test_in_a_chat_examples_are_the_turns_before(tokenizer: Any) -> None:
    chat = copy.deepcopy(tokenizer)
    turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    chat.chat_template = turns + "{% if add_generation_prompt %}<assistant>{% endif %}"
    task, (template,) = (
        get_task("emotion"),
        [p for p in load_prompts(["short"]) if (p.language, p.kind) == ("en", "classification")],
    )
    examples = [
        AnsweredPrompt(render(template, task, text), answer)
        for text, answer in (("so glad", "joy"), ("<end> no {x}", "anger"))
    ]
    asked = render(template, task, "hm")
    found = render_chat(asked, chat, examples=examples)
    earlier = "".join(f"<user>{e.prompt.before}{e.prompt.after}<end><assistant>{e.answer}<end>" for e in examples)
    assert found.before + found.after == f"{earlier}<user>{asked.before}{asked.after}<end><assistant>"
    assert [piece.text for piece in found.before_pieces if piece.quoted] == ["so glad", "<end> no {x}"]


def test_prompts_grow_by_the_examples_as_far_as_the_backbone_reads(backbones: dict[str, Path]) -> None:
    processor = load_untuned(str(backbones["llama"]), ["emotion"], ["short"]).predictor.processor
    limit_prompts(processor, None, 300)
    assert processor.max_prompt_tokens == LONGEST_PROMPT + 300
    limit_prompts(processor, 512, 300)
    longest = max(len(a) for language in ("en", "zh") for a in processor.answers(processor.tasks[0], language))
    assert processor.max_prompt_tokens == 512 - longest - 1


REFUSED = {
    "the split that is scored": (["--examples_split", "test"], "--examples_split test: that split is scored"),
    "more than there are": (["--examples", "5000"], "utterances in language 'en' with a transcript and an answer to task"),
    "no such split": (["--examples_split", "dev"], "no split 'dev'"),
    "a checkpoint": (["--checkpoint", "."], "--examples: a checkpoint is asked as it was trained, without"),
    "less than none": (["--examples", "-1"], "examples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_examples_that_cannot_be_are_refused(
    case: str, backbones: dict[str, Path], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = REFUSED[case]
    argv = ["evaluate", "--backbone", str(backbones["llama"]), "--data", str(store), "--tasks", "emotion"]
    argv += ["--prompts", "short", "--output", str(tmp_path / "out"), *options]
    argv += [] if "--examples" in options else ["--examples", "2"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error.strip().splitlines()[-1]
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_no_example_is_of_a_scored_dialogue(backbones: dict[str, Path], store: Path, tmp_path: Path) -> None:
    from llm_mer.inference.few_shot import add_examples

    pipeline = load_untuned(str(backbones["llama"]), ["emotion"], ["short"])
    utterances = list(UtteranceStore.open(store).split("train"))
    for number, utterance in enumerate(utterances):
        utterance.dialogue_id, utterance.turn = ("scored" if number % 3 == 1 else f"own-{number}"), number
    asked = pipeline.questions(utterances[1:2], pipeline.predictor.processor.tasks)
    known = pipeline.questions(utterances, pipeline.predictor.processor.tasks)
    ids = add_examples(pipeline.predictor.processor, asked, known, 5, 0, None, "the store")
    dialogues = {u.id: u.dialogue_id for u in utterances}
    (drawn,) = ids["emotion"].values()
    assert len(drawn) == 5
    assert "scored" not in {dialogues[identifier] for identifier in drawn}
