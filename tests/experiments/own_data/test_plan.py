"""A table becomes a plan: columns, tasks, languages and splits by rules that are shown, and refused where they are open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from own_tables import MOODS, SENTENCES, make_clips, write_table

from llm_mer.errors import UserError
from llm_mer.experiments.own_data.description import describe_plan
from llm_mer.experiments.own_data.options import OwnDataOptions
from llm_mer.experiments.own_data.plan import Plan, make_plan
from llm_mer.experiments.own_data.steps import to_yaml, write_tasks
from llm_mer.experiments.own_data.table import find_fields, read_table
from llm_mer.prompting.tasks import builtin_tasks, get_task

COLUMNS = ("id", "text", "mood", "pleasure")


def rows(count: int = 24) -> list[list[Any]]:
    """``[id, text, mood, pleasure]``, a quarter of them Chinese."""
    found = []
    for n in range(count):
        language = "zh" if n // 3 % 4 == 3 else "en"
        found.append([f"c{n}", SENTENCES[language][n % 4], MOODS[n % 3], (n * 17) % 97])
    return found


def plan_of(path: Path, given: dict[str, Any] | None = None, **options: Any) -> Plan:
    return make_plan(OwnDataOptions(manifest=str(path), **options), {"backbone": "none", "use_cpu": True, **(given or {})})


def test_labels_scores_languages_and_splits_are_told_by_the_columns(tmp_path: Path) -> None:
    path = write_table(tmp_path / "clips.csv", COLUMNS, rows())
    plan = plan_of(path)
    mood, pleasure = (target.task for target in plan.targets.learnt)
    assert (mood.kind, mood.label_names) == ("classification", MOODS)
    assert mood.words("zh") == MOODS
    assert mood.question == {"en": "What is the mood?", "zh": "mood是什么？"}
    assert (pleasure.kind, pleasure.score_range, pleasure.decimals) == ("regression", (0, 100), 0)
    assert plan.features.to_dict() | {"audio": "none", "vision": "none", "text": "ngrams"} == plan.features.to_dict()
    assert {u.id: u.labels for u in plan.utterances}["c1"] == {"mood": "tense", "pleasure": 17.0}
    assert {name: plan.splits.names.count(name) for name in ("train", "valid", "test")} == {
        "train": 14,
        "valid": 5,
        "test": 5,
    }
    assert plan.questions == 28
    text = describe_plan(plan)
    for line in (
        f"{path}: 24 clips (18 en, 6 zh); read as id, text",
        "'mood': labels calm 8, tense 8, bored 8 (labels as they stand in the column; 24 rows)",
        "question: What is the mood? / mood是什么？",
        "'pleasure': score from 0 to 100 in steps of 1 (observed 0 to 95; 24 rows)",
        "drawn with --split_seed 0: clip by clip, 'mood' spread over them",
        "features: audio none, vision none, text ngrams",
        "warning: 5 test clips tell little: look at the intervals, not at the scores alone",
    ):
        assert line in text, text
    assert not (tmp_path / "runs").exists()


def test_words_and_a_question_of_a_task_file_are_used_and_what_was_inferred_can_be_written(tmp_path: Path) -> None:
    path = write_table(tmp_path / "clips.csv", COLUMNS, rows())
    written = write_tasks(plan_of(path), tmp_path / "tasks")
    assert [file.name for file in written] == ["mood.yaml", "pleasure.yaml"]
    inferred = [target.task for target in plan_of(path).targets.learnt]
    assert [get_task(str(file)) for file in written] == inferred
    words = [dict(name=m, en=m, zh=z) for m, z in zip(MOODS, ("平静", "紧张", "无聊"), strict=True)]
    own = {"kind": "classification", "labels": words, "question": {"en": "How does it feel?", "zh": "感觉如何？"}}
    written[0].write_text(to_yaml({"mood": own}), encoding="utf-8")
    plan = plan_of(path, tasks=[str(written[0])])
    assert plan.targets.learnt[0].task.words("zh") == ("平静", "紧张", "无聊")
    assert "question: How does it feel? / 感觉如何？" in describe_plan(plan)
    del words[0]
    written[0].write_text(to_yaml({"mood": own}), encoding="utf-8")
    with pytest.raises(UserError, match=r"clips\.csv:2: column 'mood': label 'calm' is not in task 'mood'"):
        plan_of(path, tasks=[str(written[0])])


def test_a_built_in_task_answers_for_the_column_of_its_name_if_it_knows_every_label(tmp_path: Path) -> None:
    table = [[f"c{n}", "hello there", ("joy", "anger")[n % 2]] for n in range(12)]
    (target,) = plan_of(write_table(tmp_path / "a.csv", ("id", "text", "emotion"), table)).targets.learnt
    assert target.task == builtin_tasks()["emotion"]
    table[3][2] = table[5][2] = table[7][2] = "bored"
    (target,) = plan_of(write_table(tmp_path / "b.csv", ("id", "text", "emotion"), table)).targets.learnt
    assert target.task.label_names == ("joy", "anger", "bored")
    assert target.task.question == {"en": builtin_tasks()["emotion"].question["en"]}


def test_columns_are_found_in_any_case_and_those_that_describe_a_clip_are_left_out(tmp_path: Path) -> None:
    columns = ("Transcript", "Speaker ID", "Mood", "gender", "comment", "")
    table = [[SENTENCES["en"][n % 4], f"S{n // 3 % 5}", MOODS[n % 3], "fm"[n % 2], f"x{n}", n] for n in range(30)]
    plan = plan_of(write_table(tmp_path / "clips.csv", columns, table))
    assert [target.task.name for target in plan.targets.learnt] == ["Mood"]
    assert plan.targets.left_out.keys() == {"gender", "comment", ""}
    assert "--targets gender learns it" in plan.targets.left_out["gender"]
    assert plan.utterances[0].speaker == "S0"
    assert plan.utterances[0].id == "row-2"
    assert "no speaker in two of them" in plan.splits.how
    both = plan_of(tmp_path / "clips.csv", targets=["gender", "Mood"], given={"backbone": "tiny:llama"})
    assert [target.task.name for target in both.targets.learnt] == ["Mood", "gender"]
    assert both.targets.left_out["comment"] == "not among --targets"


@pytest.mark.parametrize("drawn", [True, False])
def test_clips_without_speakers_are_warned_of_where_splits_are_drawn(drawn: bool, tmp_path: Path) -> None:
    pytest.importorskip("av")
    clips = make_clips(tmp_path, 24)
    splits = ["train", "train", "valid", "test"]
    nameless = [[row[0], row[1], row[3], splits[n // 3 % 4]] for n, row in enumerate(clips)]
    path = write_table(tmp_path / "clips.csv", ("file", "text", "mood", "notes" if drawn else "split"), nameless)
    warning = "24 of 24 clips name no speaker: the same voices and faces may be in training and test"
    assert (warning in describe_plan(plan_of(path))) == drawn
    named = [[row[0], row[1], row[3], row[2]] for row in clips]
    known = write_table(tmp_path / "known.csv", ("file", "text", "mood", "speaker"), named)
    assert "name no speaker" not in describe_plan(plan_of(known))


@pytest.mark.parametrize(
    ("columns", "options", "field"),
    [
        (("video", "text", "mood"), {}, "clip"),
        (("video", "text", "mood"), {"columns": ["video=video"]}, "video"),
        (("video", "audio", "mood"), {}, "video"),
        (("Clip Path", "text", "mood"), {}, "clip"),
    ],
)
def test_a_video_alone_is_a_clip_whose_sound_is_read(
    columns: tuple[str, ...], options: dict[str, Any], field: str, tmp_path: Path
) -> None:
    table = read_table(write_table(tmp_path / "clips.csv", columns, [["a", "b", "calm"]]))
    assert find_fields(table, options.get("columns", []))[columns[0]] == field


def test_classes_and_range_decide_about_numbers(tmp_path: Path) -> None:
    table = [[f"c{n}", "hello there", n % 5 + 1] for n in range(20)]
    path = write_table(tmp_path / "clips.csv", ("id", "text", "valence"), table)
    (classes,) = plan_of(path, classes=["valence"]).targets.learnt
    assert classes.task.label_names == ("1", "2", "3", "4", "5")
    (scores,) = plan_of(path, range=["valence=1:5"]).targets.learnt
    assert (scores.task.score_range, scores.task.decimals) == ((1, 5), 0)
    with pytest.raises(UserError, match="--classes and --range both name 'valence'"):
        plan_of(path, range=["valence=1:5"], classes=["valence"])


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        (
            {"text": "これは本です"},
            {},
            r":3: the transcript 'これは本です' is in none of the languages .* 1 such row: 3\. Leave",
        ),
        ({"text": ""}, {}, r":3: give at least one of text, audio, video"),
        ({"text": "123"}, {}, r":3: no transcript tells the language, in 1 of 24 rows; say --language en"),
        ({"id": "c0"}, {}, r":3: id 'c0' is already used at .*clips\.csv:2"),
        ({"pleasure": "3,5"}, {}, r":3: column 'pleasure' is '3,5'; a decimal comma is not read: write 3\.5"),
        ({"mood": "Calm"}, {}, r":3: column 'mood' is 'Calm', and 'calm' at .*:2: one label in two spellings"),
        ({}, {"targets": ["moood"]}, r"--targets moood: .* has no such column with values; it has \['id', 'text', 'mood'"),
        ({}, {"targets": ["id"]}, r"column 'id' is read as id, not as a target"),
        ({}, {"range": ["pleasure=5"]}, "--range pleasure=5: '5' is no range; write LOW:HIGH"),
        ({}, {"range": ["pleasure=0:50"]}, r":5: column 'pleasure' is '51', outside --range pleasure=0:50"),
        ({}, {"columns": ["mood=feeling"]}, "--columns mood=feeling: 'feeling' is no field; choose from id, split"),
        ({}, {"columns": ["mood=ignore", "pleasure=ignore"]}, r"no column can be learnt \('mood': --columns says so; "),
        ({}, {"tasks": ["polarity"]}, "--tasks polarity: its target is 'polarity', and .* has no such column"),
        ({}, {"write_tasks": "t"}, "--write_tasks writes the task files of a --dry_run"),
        ({}, {"split_seed": -1}, "--split_seed -1: it must be a whole number"),
    ],
)
def test_what_cannot_be_used_is_refused_by_row_column_and_remedy(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    table = rows()
    for name, value in changes.items():
        table[1][COLUMNS.index(name)] = value
    path = write_table(tmp_path / "clips.csv", COLUMNS, table)
    with pytest.raises(UserError, match=message):
        plan_of(path, **options)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            ("text", "sentence", "mood"),
            {},
            r":1: columns 'text' and 'sentence' are both read as 'text'; say --columns sentence=",
        ),
        (
            ("file", "start", "mood"),
            {},
            r":1: columns \['start'\] look like times within a recording, .* cut the clips first",
        ),
        (("mood", "score", "other"), {}, r":1: no column is a clip or a text; found \['mood', 'score', 'other'\]"),
        (("file", "text", "mood"), {}, r":2: no such file '.*'; 12 of 12 rows name a file that is not there"),
        (("text", "split", "mood"), {}, r":2: field 'split' is 'v0-1'; it must be one of train, valid, test"),
    ],
)
def test_columns_that_do_not_make_a_data_set_are_refused(
    tmp_path: Path, columns: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    table = [[f"v{n}-{column}" for column in range(2)] + [MOODS[n % 3]] for n in range(12)]
    with pytest.raises(UserError, match=message):
        plan_of(write_table(tmp_path / "clips.csv", columns, table), **options)


def test_an_adapter_alone_answers_one_column_of_a_kind_and_options_of_the_plan_are_not_given_twice(tmp_path: Path) -> None:
    table = [[*row, ("yes", "no")[n % 2]] for n, row in enumerate(rows())]
    path = write_table(tmp_path / "clips.csv", (*COLUMNS, "agreed"), table)
    with pytest.raises(UserError, match="one column of labels and not mood, agreed; say --targets with one of them"):
        plan_of(path)
    assert len(plan_of(path, {"backbone": "tiny:llama"}).targets.learnt) == 3
    for given, message in (
        ({"data": "x"}, "data: follows from --manifest"),
        ({"seeds": [1, 2]}, "seeds: --manifest trains one"),
    ):
        with pytest.raises(UserError, match=message):
            plan_of(path, given)


def test_options_that_are_named_stand_over_the_defaults_and_a_plan_changes_with_them(tmp_path: Path) -> None:
    path = write_table(tmp_path / "clips.csv", COLUMNS, rows())
    plan = plan_of(path, {"num_train_epochs": 2.0, "hidden_size": 16})
    assert plan.steps == 2 * 4
    assert plan.config.adapter.hidden_size == 16
    assert plan.inputs() == plan_of(path, {"num_train_epochs": 2.0, "hidden_size": 16}).inputs()
    changed = plan_of(path, {"num_train_epochs": 3.0, "hidden_size": 16}).inputs()
    assert {name for name, value in plan.inputs().items() if changed[name] != value} == {"--num_train_epochs"}
    table = rows()
    table[0][1] = "another sentence"
    write_table(path, COLUMNS, table)
    assert plan_of(path, {"num_train_epochs": 2.0, "hidden_size": 16}).inputs()["the table"] != plan.inputs()["the table"]


def test_a_name_with_white_space_around_it_is_its_columns_and_tasks_without(tmp_path: Path) -> None:
    path = write_table(tmp_path / "clips.csv", ("id", "text", " mood "), [[*row[:2], f" {row[2]}"] for row in rows()])
    plan = plan_of(path)
    (target,) = plan.targets.learnt
    assert (target.column, target.task.name, target.task.target) == (" mood ", "mood", "mood")
    assert plan.names.renamed == {" mood ": "mood"}
    assert plan.questions == plan.splits.names.count("train")


def test_a_task_file_without_a_question_gets_one_and_prompts_are_checked_before_anything_is_made(tmp_path: Path) -> None:
    path = write_table(tmp_path / "clips.csv", COLUMNS, rows())
    task = {
        "kind": "classification",
        "labels": [{"name": m, "en": m, "zh": m} for m in MOODS],
        "question": {"en": "How is it?"},
    }
    (tmp_path / "mood.yaml").write_text(to_yaml({"mood": task}))
    plan = plan_of(path, {"backbone": "tiny:llama"}, tasks=[str(tmp_path / "mood.yaml")])
    assert plan.targets.learnt[0].task.question == {"en": "How is it?", "zh": "mood是什么？"}
    assert "its file has no question in zh, so this one is asked" in describe_plan(plan)
    table = [[*row, ("yes", "no")[n % 2]] for n, row in enumerate(rows())]
    both = write_table(tmp_path / "both.csv", (*COLUMNS, "agreed"), table)
    assert len(plan_of(both, {"backbone": "tiny:llama"}).targets.learnt) == 3
    with pytest.raises(UserError, match=r"mood.*agreed"):
        plan_of(both, {"backbone": "tiny:llama", "prompts": ["short"]})
