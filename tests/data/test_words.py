"""Counting a transcript in words."""

import pytest

from llm_mer.data.words import join_words, split_words


@pytest.mark.parametrize(
    ("text", "language", "words"),
    [
        ("I am  fine, thanks.", "en", ["I", "am", "fine,", "thanks."]),
        ("你好，世界。", "zh", ["你", "好，", "世", "界。"]),
        ("我用 iPhone 15 听歌", "zh", ["我", "用", "iPhone", "15", "听", "歌"]),
        ("……好", "zh", ["……", "好"]),
        ("", "zh", []),
        ("  ", "en", []),
    ],
)
def test_english_is_counted_in_words_and_chinese_in_characters(text: str, language: str, words: list[str]) -> None:
    assert split_words(text, language) == words


@pytest.mark.parametrize(("text", "language"), [("a b c", "en"), ("你好，世界。", "zh"), ("用iPhone 15听", "zh")])
def test_joining_the_words_of_a_text_gives_the_text(text: str, language: str) -> None:
    assert join_words(split_words(text, language), language) == text
