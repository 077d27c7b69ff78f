"""Where answers begin: as text goes on, or as the chat template writes the assistant's turn."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, build_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llm_mer.data.schema import Utterance
from llm_mer.errors import UserError
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.answer_start import BARE, AnswerStart, plain_answer_start, sample_evenly
from llm_mer.prompting.tasks import Task, get_task
from llm_mer.prompting.templates import PromptTemplate, load_prompts

SHARED = Path(os.environ.get("LLM_MER_SHARED_DATA", ROOT.parent / "shared" / "data"))
EMOTION, SENTIMENT = get_task("emotion"), get_task("sentiment")
SPECIAL = ["<pad>", "<eos>", "<|user|>", "<|assistant|>"]
CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
HEADER_ALONE = CHATML.replace("<|assistant|>\n{% endif", "<|assistant|>{% endif")
INSTRUCTED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}<eos>{% endif %}{% endfor %}"
)
OPEN_THOUGHT = CHATML.replace("<|assistant|>\n{% endif", "<|assistant|>\n<think>\n{% endif")
EMPTY_THINKING = CHATML.replace("<|assistant|>\n{% endif", "<|assistant|>\n<think>\n\n</think>\n\n{% endif")
OTHER_ROLE = CHATML.replace("<|assistant|>\n{% endif", "<|bot|>\n{% endif")


def word_tokenizer(chat_template: str | None = None) -> Any:
    """A byte-level vocabulary that joins words with the space before them, as GPT-2's and its many heirs do."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?[\p{L}]+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    lines = [f"Emotion: {word}" for word in EMOTION.words("en")] * 9 + [f"x {word}" for word in EMOTION.words("en")] * 9
    lines += [word for word in EMOTION.words("zh")] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, special_tokens=SPECIAL
    )
    backend.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", chat_template=chat_template
    )


def processor(tokenizer: Any, prompts: str | list[PromptTemplate] = "short", **options: Any) -> MerProcessor:
    templates = load_prompts(prompts) if isinstance(prompts, str) else prompts
    return MerProcessor(tokenizer, [EMOTION, SENTIMENT], templates, {}, {}, num_pseudo_tokens=2, **options)


def ending(task: str, **changes: Any) -> list[PromptTemplate]:
    values = {"name": "mine", "language": "en", "kind": "classification", "answer": "word", "task": task, **changes}
    return [PromptTemplate(**values)]


def written(made: MerProcessor, task: Task, language: str, truth: Any) -> tuple[list[int], str]:
    """The last tokens of the prompt and the answer's, and both as text."""
    assert made.tokenizer is not None
    text = task.answer_text(truth, language, made.answer_style(task, language))
    prompt = made.encode_prompt(task, language, "hello", [])
    behind = prompt.ids[prompt.start + prompt.count :]
    answer = made.encode_answer(text, task, language)
    return answer, made.tokenizer.decode(behind + answer)


@pytest.mark.parametrize(("task", "truth", "ends"), [(EMOTION, "joy", "Emotion: joy"), (SENTIMENT, -1.3, "Sentiment: -1.3")])
def test_without_a_chat_template_words_and_numbers_go_on_with_a_space(task: Task, truth: Any, ends: str) -> None:
    made = processor(word_tokenizer())
    answer, text = written(made, task, "en", truth)
    assert text.endswith(ends)
    assert answer == made.encode(ends.split(":")[1])
    assert made.encode(ends) == made.encode(ends.split(":")[0] + ":") + answer


def test_training_and_scoring_have_the_same_answer() -> None:
    made = processor(word_tokenizer())
    made.feature_sizes["text"] = 8
    sample = made.prepare(Utterance(id="a", language="en", text="hi"), EMOTION, "joy")
    assert sample.answer == [*made.answers(EMOTION, "en")[EMOTION.class_index("joy")], made.end_token_id]
    assert made.tokenizer is not None
    assert made.tokenizer.decode(sample.answer[:-1]) == " joy"


def test_chinese_answers_follow_at_once() -> None:
    made = processor(word_tokenizer())
    assert written(made, EMOTION, "zh", "joy")[1].endswith("情绪：高兴")
    ascii_end = processor(word_tokenizer(), ending("情绪:", language="zh"))
    assert written(ascii_end, EMOTION, "zh", "joy")[1].endswith("情绪:高兴")


@pytest.mark.parametrize("end", ["Emotion: ", "Emotion:\n", 'Emotion: "', "emotion=", "[", "情绪："])
def test_no_space_is_added_behind_white_space_an_opening_sign_or_other_scripts(end: str) -> None:
    made = processor(word_tokenizer(), ending(end))
    assert made.find_answer_start(EMOTION, "en") == AnswerStart()


def test_a_vocabulary_that_writes_the_space_by_itself_keeps_its_answers() -> None:
    made = processor(build_tokenizer())
    for task in (EMOTION, SENTIMENT):
        for language in ("en", "zh"):
            assert made.find_answer_start(task, language) == AnswerStart()


def test_the_vocabulary_decides_by_the_equation_in_the_docstring() -> None:
    joining = {"a: b": [1, 2], "a:": [1], " b": [2], "b": [3]}
    assert plain_answer_start("a:", ["b"], joining.__getitem__) == AnswerStart(answer_prefix=" ")
    apart = {"a: b": [1, 3], "a:": [1], " b": [2], "b": [3]}
    assert plain_answer_start("a:", ["b"], apart.__getitem__) == AnswerStart()
    alike = {"a: b": [1, 2], "a:": [1], " b": [2], "b": [2]}
    assert plain_answer_start("a:", ["b"], alike.__getitem__) == AnswerStart()


def test_a_checkpoint_that_does_not_say_has_bare_answers() -> None:
    tokenizer = word_tokenizer()
    entry = processor(tokenizer).to_dict()
    assert MerProcessor.from_dict(entry, tokenizer).encode_answer("joy", EMOTION, "en") == tokenizer.encode(" joy")
    del entry["answer_start"]
    older = MerProcessor.from_dict(entry, tokenizer)
    assert older.answer_start == BARE
    assert older.encode_answer("joy", EMOTION, "en") == tokenizer.encode("joy")
    assert MerProcessor.from_dict(older.to_dict(), tokenizer).answer_start == BARE
    with pytest.raises(UserError, match="answer_start is 'other'; it must be joined or bare"):
        MerProcessor.from_dict({**entry, "answer_start": "other"}, tokenizer)


# --- chats --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chat_template", "end", "start"),
    [
        (CHATML, "<|assistant|>\njoy", AnswerStart()),
        (HEADER_ALONE, "<|assistant|>\njoy", AnswerStart(prompt_end="\n")),
        (INSTRUCTED, "[/INST] joy", AnswerStart(answer_prefix=" ")),
        (EMPTY_THINKING, "<|assistant|>\n<think>\n\n</think>\n\njoy", AnswerStart()),
    ],
    ids=["generation prompt", "header alone", "a space", "empty thought"],
)
def test_in_a_chat_the_answer_stands_where_the_template_writes_an_assistants(
    chat_template: str, end: str, start: AnswerStart
) -> None:
    tokenizer = word_tokenizer(chat_template)
    made = processor(tokenizer, ending("Which emotion?"))
    assert made.find_answer_start(EMOTION, "en") == start
    assert written(made, EMOTION, "en", "joy")[1].endswith(end)
    if chat_template is not EMPTY_THINKING:
        turn = [{"role": "user", "content": "Which emotion?"}, {"role": "assistant", "content": "joy"}]
        rows = made.encode_prompt(EMOTION, "en", "hi", []).ids + made.encode_answer("joy", EMOTION, "en")
        whole = tokenizer.apply_chat_template(turn, tokenize=True)["input_ids"]
        assert [token for token in rows if token != made.filler_id] == whole[: len(rows) - made.num_pseudo_tokens]


@pytest.mark.parametrize("chat_template", [OPEN_THOUGHT, OTHER_ROLE], ids=["open thought", "another role"])
def test_a_generation_prompt_that_no_turn_begins_with_is_refused(chat_template: str) -> None:
    with pytest.raises(UserError, match=r"ends a prompt in .* but writes an answered one .* use chat: never"):
        processor(word_tokenizer(chat_template), ending("Which emotion?")).find_answer_start(EMOTION, "en")
    with pytest.raises(UserError, match="chat template ends a prompt"):
        processor(word_tokenizer(chat_template), ending("Which emotion?")).check_answer_starts()
    never = processor(word_tokenizer(chat_template), ending("Which emotion?"), chat="never")
    assert never.find_answer_start(EMOTION, "en") == AnswerStart(answer_prefix=" ")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_chatglm3s_answer_stands_behind_the_line_end_of_the_assistants_turn(language: str) -> None:
    path = SHARED / "tokenizers" / "chatglm3" / "tokenizer.model"
    if not path.is_file():
        pytest.skip("shared/data/tokenizers/chatglm3 is not on this machine")
    import sentencepiece

    from llm_mer.backbones.convert.chatglm3 import SPECIAL_TOKENS, load_tokenizer

    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assistant = reference.get_piece_size() + SPECIAL_TOKENS.index("<|assistant|>")
    made = processor(load_tokenizer(path, 65024), "instruct")
    for task, truths in ((EMOTION, EMOTION.label_names), (SENTIMENT, (-3.0, -1.3, 0.0, 2.0))):
        for truth in truths:
            text = task.answer_text(truth, language, made.answer_style(task, language))
            rows = made.encode_prompt(task, language, "hello", []).ids + made.encode_answer(text, task, language)
            # The published code: the role token, its header and the message, each encoded apart.
            published = [assistant, *reference.encode("\n"), *reference.encode(text)]
            assert rows[-len(published) :] == published
            assert rows.count(assistant) == 1


def test_of_many_answers_a_spread_with_both_ends_is_looked_at() -> None:
    assert sample_evenly([str(i) for i in range(5)]) == ["0", "1", "2", "3", "4"]
    some = sample_evenly([str(i) for i in range(4001)])
    assert (len(some), some[0], some[-1]) == (16, "0", "4000")
