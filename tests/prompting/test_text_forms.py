"""Texts that look alike, and those that cannot be seen, are told in one line before a training and in validation."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_utterances

from llm_mer.data.store import write_store
from llm_mer.data.validation.checks import Inspection
from llm_mer.data.validation.validate import check_utterances
from llm_mer.errors import UserError
from llm_mer.evaluation.evaluate import EvaluateConfig, evaluate
from llm_mer.inference.pipeline import MerPipeline
from llm_mer.prompting.tasks import Task
from llm_mer.prompting.text_forms import canonical_form, find_lookalikes, has_hidden_characters, is_blank
from llm_mer.training.parsing import parse_arguments
from llm_mer.training.run_data import prepare_data

CAFE = ("caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9"))


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u3000", "\u200b\u200b", "\ufeff", "\u00a0\u2060"])
def test_what_cannot_be_seen_is_blank(text: str) -> None:
    assert is_blank(text)
    assert not is_blank(f"{text}。")


@pytest.mark.parametrize(
    ("one", "other"),
    [CAFE, ("A1", "Ａ１"), ("a b", "a\u3000b"), ("a", "a\u200b"), ("a", "\ufeffa"), ("a", "a "), ("カ", "ｶ")],
)
def test_names_that_look_alike_have_one_form(one: str, other: str) -> None:
    assert canonical_form(one) == canonical_form(other)
    assert find_lookalikes([one, "x", other]) == (one, other)


def test_letter_case_is_another_form_unless_folded_and_what_is_the_same_is_no_pair() -> None:
    assert find_lookalikes(["aB", "Ab", "aB"]) is None
    assert find_lookalikes(["aB", "Ab"], fold_case=True) == ("aB", "Ab")
    assert has_hidden_characters("so\u200b happy")
    assert not has_hidden_characters("👨\u200d👩 很好")


def changed(row: int, **changes: Any) -> list[Any]:
    found = [u for split in ("train", "valid", "test") for u in make_utterances(split, 16)]
    found[row] = dataclasses.replace(found[row], **changes)
    return found


ODD: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "an id in full width": ({"id": "train－000"}, "error", "alike", "ids 'train-000' and 'train－000' look alike"),
    "a dialogue with a mark": (
        {"dialogue_id": "train-en-0\u200b"},
        "error",
        "alike",
        r"dialogues 'train-en-0' and 'train-en-0\\u200b' look alike",
    ),
    "a speaker in another width": (
        {"speaker": "Ａ"},
        "error",
        "alike",
        "speakers 'A' and 'Ａ' look alike|'Ａ' and 'A' look",
    ),
    "a blank transcript": ({"text": " \u3000"}, "warning", "empty text", "the transcript ' .*' is blank; leave an unknown"),
    "an invisible transcript": ({"text": "\u200b"}, "warning", "empty text", "transcript .* is blank; leave an unknown"),
}


@pytest.mark.parametrize("case", list(ODD))
def test_what_looks_like_something_else_is_told_in_validation_and_before_training(
    case: str, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    changes, severity, check, message = ODD[case]
    found = changed(2, **changes)
    report = check_utterances(found, "data", Inspection())
    assert (severity, check) in [(f.severity, f.check) for f in report.findings]
    config = parse_arguments(arguments(data=write_store(found, tmp_path / "store")))
    with pytest.raises(UserError, match=message):
        prepare_data(config.data)


def test_names_of_another_letter_case_get_a_warning(
    arguments: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = changed(2, id="TRAIN-000", speaker="a")
    report = check_utterances(found, "data", Inspection())
    assert [(f.severity, f.split) for f in report.findings if f.check == "alike"] == [("warning", "train"), ("warning", "")]
    prepare_data(parse_arguments(arguments(data=write_store(found, tmp_path / "store"))).data)
    assert "ids 'train-000' and 'TRAIN-000' differ in letter case only; they count as two" in caplog.text


def test_hidden_characters_and_decomposed_letters_of_a_transcript_are_found() -> None:
    found = changed(0, text=f"so \u200bhappy in the {CAFE[0]}")
    found[1] = dataclasses.replace(found[1], text=f"in the {CAFE[1]}", language="en")
    names = {f.check: f.first[0].split()[0] for f in check_utterances(found, "data", Inspection()).findings if f.first}
    assert names["hidden characters"] == found[0].id
    assert names["unicode form"] == found[1].id


def test_a_task_without_words_of_a_language_of_the_data_is_an_error() -> None:
    labels = [{"name": name, "en": name} for name in ("joy", "anger", "surprise", "sadness")]
    task = Task.from_dict("mood", {"kind": "classification", "target": "emotion", "labels": labels})
    report = check_utterances(changed(0), "data", Inspection([task]))
    (finding,) = [f for f in report.findings if f.check == "task language"]
    assert (finding.severity, finding.count) == ("error", 24)
    assert finding.first[0].startswith("mood has no words in zh: train-001")


def test_a_blank_transcript_is_neither_scored_nor_answered(trained: Path, tmp_path: Path) -> None:
    store = write_store(changed(40, text="\t"), tmp_path / "store")
    with pytest.raises(UserError, match=r"the transcript '\\t' is blank"):
        evaluate(EvaluateConfig(checkpoint=str(trained), data=[str(store)]), progress=False)
    with pytest.raises(UserError, match="the transcript ' ' is blank; leave an unknown transcript out"):
        MerPipeline.from_pretrained(trained)(text=" ", language="en")
