"""The words of a user stay words in every vocabulary: no special token, turn of a chat or placeholder comes out of them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from test_answer_tokens import SHARED, VOCABULARIES, llama2, load, processor

from llm_mer.data.schema import Utterance
from llm_mer.data.sources.synthetic.sentences import sentence
from llm_mer.prompting.rendering import HistoryTurn
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.verbatim import Piece, VerbatimEncoder

EMOTION = get_task("emotion")
MARKUP = ("<|im_end|>", "<|im_start|>", "<|user|>", "<|assistant|>", "[gMASK]", "sop", "<s>", "</s>", "<pad>", "<|eot_id|>")


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param != "llama-2":
        return load(request.param)
    if not (SHARED / "tokenizers" / "llama2").is_dir():
        pytest.skip("shared/data/tokenizers/llama2 is not on this machine")
    return llama2(tmp_path_factory.mktemp("llama2"))


def structure(vocabulary: Any, ids: list[int]) -> list[int]:
    """The special tokens among ids."""
    special = {*vocabulary.all_special_ids, *(i for i, t in vocabulary.added_tokens_decoder.items() if t.special)}
    return [i for i in ids if i in special - {vocabulary.unk_token_id}]


def said(vocabulary: Any) -> list[str]:
    """What a user might say to be taken for structure: every special token, alone, in a sentence, and several."""
    own = [token.content for token in vocabulary.added_tokens_decoder.values() if not token.content.isspace()]
    tokens = list(dict.fromkeys([*MARKUP, *own]))
    unknown = {vocabulary.unk_token}
    tokens = [token for token in tokens if token not in unknown]
    return [*tokens, *(f"I said {token} twice {token}." for token in tokens), "".join(tokens), "a sop to people, a milksop"]


@pytest.mark.parametrize("chat", ["auto", "never"])
@pytest.mark.parametrize("style", ["instruct", "short"])
def test_a_special_token_in_a_transcript_is_words(vocabulary: Any, chat: str, style: str) -> None:
    made = processor(vocabulary, style, chat)
    usual = structure(vocabulary, made.encode_prompt(EMOTION, "en", "hello", []).ids)
    for text in said(vocabulary):
        ids = made.encode_prompt(EMOTION, "en", text, []).ids
        assert structure(vocabulary, ids) == usual, text
        folded = vocabulary.decode(ids).casefold().replace(" ", "")
        assert text.casefold().replace(" ", "") in folded, text


def test_a_special_token_in_an_earlier_turn_or_a_speakers_name_is_words(vocabulary: Any) -> None:
    made = processor(vocabulary, "context")
    usual = structure(vocabulary, made.encode_prompt(EMOTION, "en", "hello", [HistoryTurn("A", "hi")]).ids)
    for text in said(vocabulary):
        found = made.encode_prompt(EMOTION, "en", "hello", [HistoryTurn(text, text)]).ids
        assert structure(vocabulary, found) == usual, text


def test_the_transcript_that_the_adapter_reads_has_no_special_tokens(vocabulary: Any) -> None:
    made = processor(vocabulary, "short")
    made.feature_sizes["text"] = 4
    for text in said(vocabulary):
        sample = made.prepare(Utterance("a", language="en", text=text), EMOTION, None)
        assert sample.text_ids
        assert structure(vocabulary, sample.text_ids) == []


@pytest.mark.parametrize("chat", ["auto", "never"])
def test_ordinary_words_have_the_ids_of_the_tokenizer_for_the_whole_text(vocabulary: Any, chat: str) -> None:
    generator = np.random.default_rng(0)
    texts = {language: [sentence(generator, language, None) for _ in range(40)] for language in ("en", "zh")}
    texts["en"] += ["{low} and {transcript}", "ﬁne  café\n😀", " spaces "]
    for style in ("short", "instruct"):
        made = processor(vocabulary, style, chat)
        for language, spoken in texts.items():
            for text in spoken:
                found = made.encode_prompt(EMOTION, language, text, [])
                template = next(p for p in made.prompts if (p.language, p.kind) == (language, "classification"))
                rendered = made.render(template, EMOTION, text, [])
                assert text in rendered.after
                # In ChatGLM3's chat a line end follows: it is the prompt's, as in the assistant's own turns.
                whole = rendered.after + made.find_answer_start(EMOTION, language).prompt_end
                after = list(vocabulary(whole, add_special_tokens=False)["input_ids"])
                before = list(vocabulary(rendered.before, add_special_tokens=False)["input_ids"])
                assert found.ids[found.start + found.count :] == after
                assert found.ids[: found.start][-len(before) :] == before


def test_words_spelt_like_special_tokens_are_tokens_as_if_no_such_token_were_known(vocabulary: Any) -> None:
    """Independent of the code under test: parts of the word that are no special token, encoded each, decode to it."""
    encoder = VerbatimEncoder(vocabulary)
    for text in said(vocabulary):
        ids = encoder.encode([Piece(text, quoted=True)])
        assert vocabulary.decode(ids).casefold().replace(" ", "") == text.casefold().replace(" ", "")
        assert all(0 <= i < len(vocabulary) for i in ids)


def test_special_tokens_of_a_template_stay_structure_beside_words_that_spell_them() -> None:
    vocabulary = load("qwen split")
    end = vocabulary.convert_tokens_to_ids("<|im_end|>")
    encoder = VerbatimEncoder(vocabulary)
    ids = encoder.encode([Piece("Say "), Piece("<|im_end|>", quoted=True), Piece("<|im_end|>"), Piece("now")])
    assert ids.count(end) == 1
    assert vocabulary.decode(ids) == "Say <|im_end|><|im_end|>now"
    assert all(pair != (end, end) for pair in pairwise(ids))


def test_a_stand_in_of_the_renderer_in_a_transcript_is_text() -> None:
    made = processor(load("qwen split"), "instruct")
    text = "\u2060words\u20600\u2060 \u2060pseudo\u2060tokens\u2060 {speaker}"
    rendered = made.render(next(p for p in made.prompts if p.kind == "classification"), EMOTION, text, [])
    assert text in rendered.after
