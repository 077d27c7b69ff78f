"""One rule tells a transcript's language, and tells none where the script does not."""

from __future__ import annotations

import pytest

from llm_mer.errors import UserError
from llm_mer.prompting.languages import detect_language, script_language


@pytest.mark.parametrize("text", ["I am fine.", "OK", "ＯＫ", "Their fiancée is there.", "wow 123 😀"])
def test_latin_letters_are_english(text):
    assert detect_language(text) == "en"


@pytest.mark.parametrize("text", ["我今天真的太高兴了", "我很 happy 啊", "人々", "㐀", "𠀀"])
def test_chinese_characters_are_chinese(text):
    assert detect_language(text) == "zh"


@pytest.mark.parametrize(
    "text",
    [
        "정말 행복해요",  # Korean
        "なんで",  # Japanese without kanji
        "今日は嬉しい",  # Japanese with kanji
        "Ich bin heute sehr froh",  # German, all letters ASCII
        "Ich bin müde",
        "Je ne sais pas",
        "Estoy muy feliz",
        "Привет",
        "مرحبا",
        "สวัสดี",
        "…",
        "123",
        "😀",
        "",
        None,
    ],
)
def test_anything_else_is_refused_in_one_line_that_names_the_field(text):
    assert script_language(text) is None
    with pytest.raises(UserError, match=r"'language', one of en, zh") as error:
        detect_language(text)
    assert "\n" not in str(error.value)
