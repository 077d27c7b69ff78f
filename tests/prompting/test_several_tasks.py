"""Tasks of one kind are asked in words that tell them apart, or refused before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from llm_mer.cli.train import finetune
from llm_mer.errors import UserError
from llm_mer.prompting.rendering import check_prompts_differ, render
from llm_mer.prompting.tasks import Task, builtin_tasks, get_task
from llm_mer.prompting.templates import PromptTemplate, load_prompts, select_prompt

QUESTIONS = {
    "valence": {"en": "How pleasant does the speaker feel?", "zh": "说话人感觉有多愉快？"},
    "arousal": {"en": "How excited is the speaker?", "zh": "说话人有多激动？"},
}


def score(name: str, **changes: object) -> Task:
    entry = {"kind": "regression", "target": "sentiment", "range": [-3, 3], "question": QUESTIONS[name], **changes}
    return Task.from_dict(name, {key: value for key, value in entry.items() if value is not None})


def template(name: str, **changes: object) -> PromptTemplate:
    entry = {"language": "en", "kind": "regression", "answer": "number", "task": "{transcript} Score:", **changes}
    return PromptTemplate.from_dict({"name": name, **entry})


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_question_of_a_task_tells_it_from_another_of_its_kind(language: str) -> None:
    prompts = load_prompts("question")
    texts = [
        render(select_prompt(prompts, task, language), task, "x").after for task in (score("valence"), score("arousal"))
    ]
    assert texts[0] != texts[1]
    assert QUESTIONS["valence"][language] in texts[0]
    assert QUESTIONS["arousal"][language] in texts[1]
    check_prompts_differ(prompts, [score("valence"), score("arousal")], language)


def test_tasks_that_are_asked_alike_are_refused_naming_both_and_what_to_write() -> None:
    message = r"'valence' and 'arousal' have the same prompt in language 'zh' \(short_zh_regression\).*question: \{zh: …\}"
    with pytest.raises(UserError, match=message):
        check_prompts_differ(load_prompts("short"), [score("valence"), score("arousal")], "zh")
    check_prompts_differ(load_prompts("short"), [get_task("emotion"), get_task("sentiment")], "en")


def test_a_template_that_names_a_task_is_preferred_for_it_and_used_for_no_other() -> None:
    general, own = template("general"), template("own", tasks=["arousal"], task="{transcript} Arousal:")
    assert select_prompt([general, own], score("arousal"), "en") is own
    assert select_prompt([own, general], score("valence"), "en") is general
    check_prompts_differ([general, own], [score("valence"), score("arousal")], "en")
    with pytest.raises(UserError, match=r"task 'valence' in language 'en'; loaded are: own \(en, regression, arousal\)"):
        select_prompt([own], score("valence"), "en")
    with pytest.raises(UserError, match="'own' is for arousal, not for task 'valence'"):
        render(own, score("valence"), "x")


def test_the_name_of_a_task_may_stand_in_a_template() -> None:
    named = template("named", task="{task} of {transcript}:")
    assert render(named, score("arousal"), "x").after == "arousal of x:"


def test_a_question_that_is_missing_is_an_error_that_says_where_to_write_it() -> None:
    task = score("valence", question={"en": "How pleasant?"})
    with pytest.raises(
        UserError, match=r"'valence' has no question in language 'zh'.*write question: \{zh: …\} in its file"
    ):
        select_prompt(load_prompts("question"), task, "zh")
    assert select_prompt(load_prompts(["question", "short"]), task, "zh").name == "short_zh_regression"


@pytest.mark.parametrize(
    ("question", "message"),
    [("How?", r"it must be \{en: …, zh: …\}"), ({"en": ""}, "it must be"), ({"ko": "?"}, r"question in \['ko'\]")],
)
def test_a_question_of_the_wrong_form_is_refused(question: object, message: str) -> None:
    with pytest.raises(UserError, match=f"'valence' has .*{message}"):
        score("valence", question=question)


@pytest.mark.parametrize("tasks", ["arousal", [1]])
def test_a_template_whose_tasks_are_no_list_of_names_is_refused(tasks: object) -> None:
    with pytest.raises(UserError, match=r"tasks is .*; it must be a list of names"):
        template("mine", tasks=tasks)


def test_tasks_of_a_template_and_the_question_of_a_task_survive_their_description() -> None:
    own = template("own", tasks=["arousal"])
    assert PromptTemplate.from_dict(own.to_dict()) == own
    assert "tasks" not in template("general").to_dict()
    assert Task.from_dict("arousal", score("arousal").to_dict()) == score("arousal")


def test_every_built_in_task_has_its_question_in_both_languages() -> None:
    assert all(set(task.question) == {"en", "zh"} for task in builtin_tasks().values())


def test_training_on_tasks_that_are_asked_alike_is_refused_before_a_backbone_is_loaded(
    arguments: Callable[..., list[str]], no_backbone: None, tmp_path: Path
) -> None:
    files = []
    for name in QUESTIONS:
        files.append(str(tmp_path / f"{name}.yaml"))
        entry = {"kind": "regression", "target": "sentiment", "range": [-3, 3], "question": QUESTIONS[name]}
        Path(files[-1]).write_text(yaml.safe_dump({name: entry}, allow_unicode=True), encoding="utf-8")
    with pytest.raises(UserError, match="'valence' and 'arousal' have the same prompt"):
        finetune(arguments(tasks=files))
    with pytest.raises(AssertionError, match="a backbone was loaded"):  # with their questions nothing is refused
        finetune(arguments(tasks=files, prompts=["question"]))
