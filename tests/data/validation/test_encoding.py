"""Mojibake is told from accents, quotation marks and Chinese."""

from __future__ import annotations

import pytest

from llm_mer.data.validation.encoding import is_mojibake, is_other_language


@pytest.mark.parametrize(
    ("text", "language", "garbled"),
    [
        ("don’t", "en", False),
        ("a naïve café, Zürich, señor", "en", False),
        ("“quoted” – dashed…", "en", False),
        ("“CAFÉ” they said", "en", False),
        ("你好，world", "zh", False),
        ("", "en", False),
        ("donâ€™t", "en", True),
        ("cafÃ©", "en", True),
        ("don\ufffdt", "en", True),
        ("don\x92t", "en", True),
        ("\udc92t", "en", True),
        ("ä½ å¥½", "zh", True),
        ("ÄãºÃ", "zh", True),
    ],
)
def test_texts_read_in_another_encoding_are_told_from_accents_and_quotation_marks(
    text: str, language: str, garbled: bool
) -> None:
    assert is_mojibake(text, language) is garbled


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_whole_chinese_sentences_read_as_latin_are_garbled(encoding: str) -> None:
    assert is_mojibake("我一点都不知道".encode(encoding).decode("latin-1"), "zh")


@pytest.mark.parametrize(
    ("text", "language", "other"),
    [
        ("我们今天很高兴", "en", True),
        ("I love 饺子", "en", False),
        ("I am so happy today", "zh", True),
        ("OK bye", "zh", False),
        ("我觉得 very happy today haha", "zh", False),
        ("...", "zh", False),
        ("Ich bin müde", "en", False),
    ],
)
def test_a_text_plainly_in_the_other_language_is_told_from_borrowed_words(text: str, language: str, other: bool) -> None:
    assert is_other_language(text, language) is other
