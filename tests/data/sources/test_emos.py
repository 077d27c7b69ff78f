"""EmoS: shares of three annotators become counts, and dialogues stay whole."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from shared_files import shared_data

from llm_mer.data.dataset import MerDataset
from llm_mer.data.sources.emos import EMOTIONS, UNSURE, read_emos
from llm_mer.data.validation.validate import ValidateConfig, validate
from llm_mer.data.votes import Votes
from llm_mer.errors import UserError
from llm_mer.prompting.tasks import get_task

LINE: dict[str, Any] = {
    "id": "dia0_utt2",
    "dialogue_id": "dia0",
    "turn": 2,
    "speaker": "Chandler",
    "text": "That I did.",
    "language": "en",
    "meld_emotion": "neutral",
    "votes": {"approval": 0.3333, "joy": 0.6667, "pride": 1.0},
    "split": "train",
}
TASK = str(ROOT / "benchmarks" / "emos" / "task.yaml")


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "en.jsonl"
    path.write_text(json.dumps({**LINE, **changes}) + "\n", encoding="utf-8")
    return path


def test_shares_are_counts_of_three_annotators_and_melds_label_is_a_target_of_its_own(tmp_path: Path) -> None:
    write(tmp_path)
    (found,) = read_emos(tmp_path, split="published")
    assert found.votes == {"emos": Votes({"approval": 1, "joy": 2, "pride": 3}, 3)}
    assert found.labels == {"emotion": "neutral"}
    assert (found.id, found.split, found.speaker, found.turn) == ("dia0_utt2", "train", "Chandler", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"votes": {"bliss": 1.0}}, "field votes names 'bliss'"),
        ({"votes": {"joy": 0.5}}, "votes of 'joy' are 0.5; they must be a share of 3 annotators"),
        ({"votes": {"joy": 2}}, "votes of 'joy' are 2"),
        ({"votes": {"joy": 0.0}}, "votes are all 0"),
        ({"votes": None}, "field votes is None"),
        ({"text": " "}, "field text is ' '"),
        ({"split": "dev"}, "field split is 'dev'"),
        ({"language": "fr"}, "field language is 'fr'"),
        ({"turn": "x"}, "field turn is 'x'"),
        ({"meld_emotion": "bliss"}, "field meld_emotion: label 'bliss'"),
        ({"sentiment": "high"}, "field sentiment is 'high'"),
    ],
)
def test_wrong_lines_name_file_line_and_field(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        list(read_emos(write(tmp_path, **changes)))
    assert "en.jsonl:1: " in str(caught.value)
    assert message in str(caught.value)


def test_no_file_and_an_unknown_way_to_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; an EmoS folder holds en\.jsonl and zh\.jsonl"):
        list(read_emos(tmp_path))
    with pytest.raises(UserError, match="split is 'random'; it must be one of dialogue, published"):
        list(read_emos(tmp_path, split="random"))


def test_the_task_has_the_readers_emotions_and_leaves_unsure_out() -> None:
    task = get_task(TASK)
    assert task.label_names == EMOTIONS
    assert task.ignored == (UNSURE,)
    assert len(set(task.words("zh"))) == 28


def test_real_files_are_read_whole_and_no_dialogue_is_cut() -> None:
    found = list(read_emos(shared_data("emos")))
    assert Counter(u.language for u in found) == {"en": 3980, "zh": 3369}
    assert len({u.id for u in found}) == len(found)
    dialogues = {u.dialogue_id: u.split for u in found}
    assert all(dialogues[u.dialogue_id] == u.split for u in found)
    published = list(read_emos(shared_data("emos"), split="published"))
    assert Counter((u.language, u.split) for u in published) == {
        ("en", "train"): 3550, ("en", "valid"): 430, ("zh", "train"): 2722, ("zh", "valid"): 647
    }  # fmt: skip
    asked = MerDataset(found, [get_task(TASK)]).questions
    assert len(asked) == 7349 - sum(set(u.votes["emos"].counts) == {UNSURE} for u in found)
    assert 0.2 < sum(q.truth is None for q in asked) / len(asked) < 0.35


def test_real_files_have_no_fault_but_speakers_in_several_splits() -> None:
    report = validate(ValidateConfig(f"emos:{shared_data('emos')}", tasks=[TASK]))
    faults = {(f.severity, f.check) for f in report.findings if f.severity != "info"}
    assert faults == {("warning", "shared speaker")}
