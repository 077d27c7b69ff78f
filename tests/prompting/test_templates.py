"""Every shipped template loads and renders; a broken one is refused by file and field; pseudo tokens have their place."""

from pathlib import Path

import pytest
import yaml
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llm_mer.errors import UserError
from llm_mer.model.processing_mer import MerProcessor
from llm_mer.prompting.preview import preview
from llm_mer.prompting.rendering import PSEUDO_TOKENS_MARKER, HistoryTurn, render, render_chat
from llm_mer.prompting.tasks import Task, get_task
from llm_mer.prompting.templates import PromptTemplate, load_prompts, prompt_folder, read_prompt, select_prompt, styles

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "prompts").glob("*.yaml"))
TASKS = {"classification": get_task("meld"), "regression": get_task("sims")}
GOOD = {"language": "en", "kind": "classification", "answer": "word", "task": "Text: {transcript}\nEmotion:"}
CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
DROPS_SYSTEM = CHATML.replace("messages %}", "messages if m.role != 'system' %}")


def template(**changes: object) -> PromptTemplate:
    return PromptTemplate(**{"name": "mine", **GOOD, **changes})  # type: ignore[arg-type]


def write(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "mine_en.yaml"
    entry = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(entry, allow_unicode=True), encoding="utf-8")
    return path


def character_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token a character, so that ids and text can be compared place by place."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    for code in [10, *range(32, 127)]:
        words[chr(code)] = len(words)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = chat_template
    return fast


# --- shipped templates ------------------------------------------------------------------------------------------------


def test_there_are_shipped_templates_and_the_folder_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sorted(prompt_folder().glob("*.yaml")) == SHIPPED
    assert styles() == ["context", "index", "instruct", "notext", "preamble", "question", "short"]
    assert [t.name for t in load_prompts("short")] == [p.stem for p in SHIPPED if p.stem.startswith("short_")]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_template_is_what_its_name_says_and_renders_for_its_language(path: Path) -> None:
    prompt = read_prompt(path)
    style, language, kind = path.stem.split("_")
    assert (prompt.name, prompt.language, prompt.kind) == (path.stem, language, kind)
    task, text = TASKS[kind], {"en": "I won {it}!", "zh": "我赢了{它}！"}[language]
    history = [HistoryTurn("Ana", "first"), HistoryTurn(None, None)]
    rendered = render(prompt, task, text, history)
    whole = rendered.before + rendered.after
    assert rendered.before == prompt.prefix != ""
    assert (text in rendered.after) == (style != "notext")
    assert whole.rstrip() == whole, "the answer follows the last character"
    if style == "index":
        assert f"0 = {task.words(language)[0]}" in whole
        assert f"6 = {task.words(language)[6]}" in whole
    if style == "context":
        assert whole.index("first") < whole.index(text)
        assert prompt.missing_transcript in whole
    if style == "instruct":
        assert rendered.system
        expected = task.words(language) if kind == "classification" else ("-1.0", "1.0")
        assert all(word in whole for word in expected)
    assert prompt.answer in ("index", "word", "number")
    assert len(task.answers(language, prompt.answer)) > 1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_template_is_written_in_its_language(path: Path) -> None:
    prompt = read_prompt(path)
    rendered = render(prompt, TASKS[prompt.kind], None, [HistoryTurn("A", None)])
    chinese = [c for c in rendered.system + rendered.before + rendered.after if "\u4e00" <= c <= "\u9fff"]
    assert bool(chinese) == (prompt.language == "zh")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_template_survives_its_description(path: Path) -> None:
    prompt = read_prompt(path)
    assert PromptTemplate.from_dict(prompt.to_dict()) == prompt


@pytest.mark.parametrize("style", ["short", "instruct", "context", "notext", "question"])
def test_every_general_style_serves_both_kinds_in_both_languages(style: str) -> None:
    prompts = load_prompts(style)
    for task in TASKS.values():
        for language in ("en", "zh"):
            chosen = select_prompt(prompts, task, language)
            assert (chosen.language, chosen.kind) == (language, task.kind)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_prompts_are_loaded_by_style_file_and_folder_in_the_order_given(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert [t.name for t in load_prompts(str(path))] == ["mine_en"]
    assert [t.name for t in load_prompts(str(tmp_path))] == ["mine_en"]
    assert [t.name for t in load_prompts([str(path), "index"])] == [
        "mine_en",
        "index_en_classification",
        "index_zh_classification",
    ]
    assert load_prompts("short_zh_regression.yaml")[0].language == "zh"
    assert read_prompt(write(tmp_path, name="own name")).name == "own name"


def test_a_style_is_the_shipped_one_whatever_the_working_directory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("prompts", "short"):
        (tmp_path / folder).mkdir()
        own = {**GOOD, "task": "Mine: {transcript}"}
        (tmp_path / folder / "short_en_classification.yaml").write_text(yaml.safe_dump(own))
    shipped = [t.task for t in load_prompts("short")]
    monkeypatch.chdir(tmp_path)
    assert [t.task for t in load_prompts("short")] == shipped
    assert load_prompts("short_en_classification.yaml")[0].task == shipped[0]
    assert styles() == ["context", "index", "instruct", "notext", "preamble", "question", "short"]
    for own_source in ("./short", "prompts", "prompts/short_en_classification.yaml", "short/short_en_classification.yaml"):
        assert [t.task for t in load_prompts(own_source)] == ["Mine: {transcript}"]


def test_a_file_under_prompts_that_the_working_directory_lacks_is_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_prompts("prompts/index_zh_classification.yaml") == load_prompts("index")[1:]
    with pytest.raises(UserError, match="no such file"):
        load_prompts("elsewhere/index_zh_classification.yaml")


def test_a_source_that_is_nothing_is_an_error_that_names_the_styles() -> None:
    with pytest.raises(UserError, match="'fancy' is no file, folder or style; styles are context, index, instruct"):
        load_prompts("fancy")
    with pytest.raises(UserError, match=r"no such file 'fancy\.yaml'"):
        load_prompts("fancy.yaml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sufix": "x"}, ["unknown keys", "sufix"]),
        ({"task": None}, ["missing keys", "task"]),
        ({"language": None, "answer": None}, ["missing keys", "language", "answer"]),
        ({"language": "fr"}, ["language", "'fr'", "en, zh"]),
        ({"kind": "ranking"}, ["kind", "'ranking'"]),
        ({"answer": "essay"}, ["answer", "'essay'"]),
        ({"answer": "number"}, ["classification", "'number'"]),
        ({"kind": "regression"}, ["regression", "'word'"]),
        ({"answer": "index"}, ["{indexed_labels}"]),
        ({"task": "{context}Emotion:"}, ["{context}", "context_turns"]),
        ({"context_turns": 3}, ["{context}", "context_turns"]),
        ({"context_turns": "3"}, ["context_turns", "whole number"]),
        ({"context_turns": True}, ["context_turns", "whole number"]),
        ({"prefix": 3}, ["prefix", "text"]),
        ({"task": "{transcrip} Emotion:"}, ["task", "unknown placeholders", "transcrip"]),
        ({"suffix": "{}"}, ["suffix", "unknown placeholders"]),
        ({"system": "{text}"}, ["system", "unknown placeholders", "text"]),
        ({"context_line": "{who}: {text}"}, ["context_line", "unknown placeholders", "who"]),
        ({"prefix": "a { b"}, ["prefix", "literal braces"]),
        ({"task": "{transcript:.1f}"}, ["task", "transcript", "format"]),
        ({"task": "{transcript!r}"}, ["task", "transcript", "format"]),
        ({"task": "  \n"}, ["task", "empty"]),
    ],
)
@pytest.mark.parametrize("named", [False, True], ids=["named by its file", "named by itself"])
def test_a_template_that_cannot_be_used_is_an_error_naming_file_and_field(
    tmp_path: Path, changes: dict[str, object], words: list[str], named: bool
) -> None:
    path = write(tmp_path, **changes, **({"name": "own name"} if named else {}))
    with pytest.raises(UserError) as caught:
        load_prompts(str(path))
    for word in ["mine_en.yaml", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(("text", "word"), [("- a\n- b", "mapping"), ("task: [", "not YAML"), ("", "mapping")])
def test_a_file_that_is_no_template_is_an_error_naming_it(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"broken\.yaml: .*{word}"):
        read_prompt(path)


def test_a_language_or_kind_no_template_serves_is_an_error_that_names_what_is_loaded() -> None:
    prompts = [template()]
    assert select_prompt(prompts, TASKS["classification"], "en") is prompts[0]
    with pytest.raises(UserError, match=r"task 'meld' in language 'zh'; loaded are: mine \(en, classification\)"):
        select_prompt(prompts, TASKS["classification"], "zh")
    with pytest.raises(UserError, match=r"regression task 'sims' in language 'en'; loaded are: mine"):
        select_prompt(prompts, TASKS["regression"], "en")
    with pytest.raises(UserError, match="loaded are: none"):
        select_prompt([], TASKS["regression"], "en")


def test_the_first_template_that_fits_is_chosen() -> None:
    prompts = [template(name="zh", language="zh"), template(name="first"), template(name="second")]
    assert select_prompt(prompts, TASKS["classification"], "en").name == "first"


# --- rendering --------------------------------------------------------------------------------------------------------


def test_pseudo_tokens_stand_between_prefix_and_suffix_and_the_question_comes_last() -> None:
    rendered = render(template(prefix="<", suffix="> ", task="Q {transcript}?", system="S"), TASKS["classification"], "hi")
    assert (rendered.before, rendered.after, rendered.system) == ("<", "> Q hi?", "S")


def test_placeholders_are_filled_in_the_language_of_the_template() -> None:
    task = Task.from_dict(
        "mood",
        {
            "kind": "classification",
            "labels": [{"name": "up", "en": "happy", "zh": "高兴"}, {"name": "down", "en": "sad", "zh": "悲伤"}],
        },
    )
    english = template(task="{labels}|{indexed_labels}|{speaker}")
    assert render(english, task, None, speaker="Ana").after == "happy, sad|0 = happy, 1 = sad|Ana"
    assert render(english, task, None).after.endswith("|?")
    chinese = template(language="zh", task="{labels}|{indexed_labels}", unknown_speaker="某人")
    assert render(chinese, task, None).after == "高兴、悲伤|0 = 高兴、1 = 悲伤"
    scores = template(kind="regression", answer="number", task="{low}..{high}")
    assert render(scores, TASKS["regression"], None).after == "-1.0..1.0"


def test_braces_and_placeholders_in_the_users_text_stay_text() -> None:
    prompt = template(task="{context}{speaker}: {transcript}", context_turns=1)
    rendered = render(prompt, TASKS["classification"], "{labels} {0} {", [HistoryTurn("{low}", "{{x}}")], "{speaker}")
    assert rendered.after == "{low}: {{x}}\n{speaker}: {labels} {0} {"


def test_doubled_braces_in_a_template_are_literal() -> None:
    assert render(template(task='{{"emotion": "{transcript}"}}'), TASKS["classification"], "x").after == '{"emotion": "x"}'


@pytest.mark.parametrize("text", [None, ""])
def test_a_missing_transcript_is_said_in_the_templates_words(text: str | None) -> None:
    prompt = template(missing_transcript="(none)")
    assert render(prompt, TASKS["classification"], text).after == "Text: (none)\nEmotion:"


def test_the_context_is_the_last_turns_oldest_first_with_stand_ins() -> None:
    prompt = template(
        task="{context}Now:",
        context_turns=2,
        context_line="[{speaker}|{text}]",
        missing_transcript="(silence)",
        unknown_speaker="someone",
    )
    history = [HistoryTurn("A", "one"), HistoryTurn("B", None), HistoryTurn(None, "three")]
    assert render(prompt, TASKS["classification"], "x", history).after == "[B|(silence)][someone|three]Now:"
    assert render(prompt, TASKS["classification"], "x", []).after == "Now:"


def test_a_template_without_context_shows_no_history() -> None:
    rendered = render(template(), TASKS["classification"], "now", [HistoryTurn("A", "before")])
    assert rendered.after == "Text: now\nEmotion:"


def test_a_placeholder_without_meaning_for_the_task_is_an_error_naming_prompt_and_placeholder() -> None:
    with pytest.raises(UserError, match=r"'mine': \{low\} has no meaning for task 'meld'"):
        render(template(task="from {low}"), TASKS["classification"], "x")
    with pytest.raises(UserError, match=r"'mine': \{labels\} has no meaning for task 'sims'"):
        render(template(kind="regression", answer="number", task="{labels}"), TASKS["regression"], "x")
    with pytest.raises(UserError, match="'mine' is for classification, task 'sims' is regression"):
        render(template(), TASKS["regression"], "x")


# --- chat templates and tokens ----------------------------------------------------------------------------------------


def test_in_a_chat_the_pseudo_tokens_stay_inside_the_users_turn() -> None:
    prompt = template(prefix="P: ", suffix="\n", system="Be brief.")
    chat = render_chat(render(prompt, TASKS["classification"], "hi"), character_tokenizer(CHATML))
    assert chat.before == "<system>Be brief.</system><user>P: "
    assert chat.after == "\nText: hi\nEmotion:</user><assistant>"
    assert chat.system == ""
    assert PSEUDO_TOKENS_MARKER not in chat.before + chat.after


@pytest.mark.parametrize("source", [NO_SYSTEM, DROPS_SYSTEM], ids=["refuses the role", "drops the message"])
def test_a_chat_template_without_a_system_role_gets_the_message_in_the_users_turn(source: str) -> None:
    prompt = template(prefix="P: ", system="Be brief.")
    chat = render_chat(render(prompt, TASKS["classification"], "hi"), character_tokenizer(source))
    assert chat.before == "<user>Be brief.\nP: "
    assert chat.after.endswith("</user><assistant>")


def test_a_chat_template_that_would_let_the_model_think_is_told_not_to() -> None:
    thinking = CHATML + "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    chat = render_chat(render(template(), TASKS["classification"], "hi"), character_tokenizer(thinking))
    assert chat.after.endswith("<assistant><think></think>")


def test_an_empty_prefix_puts_the_pseudo_tokens_at_the_head_of_the_users_turn() -> None:
    chat = render_chat(render(template(), TASKS["classification"], "hi"), character_tokenizer(CHATML))
    assert chat.before == "<user>"


def test_a_chat_template_that_loses_the_users_text_is_an_error() -> None:
    with pytest.raises(UserError, match="chat template does not carry"):
        render_chat(render(template(), TASKS["classification"], "hi"), character_tokenizer("fixed text"))


@pytest.mark.parametrize("chat_template", [None, CHATML], ids=["plain", "chat"])
def test_pseudo_token_ids_stand_where_the_prompt_says(chat_template: str | None) -> None:
    tokenizer = character_tokenizer(chat_template)
    prompt = template(prefix="Signal: ", suffix="\n")
    processor = MerProcessor(tokenizer, [TASKS["classification"]], [prompt], {}, {}, num_pseudo_tokens=4)
    found = processor.encode_prompt(TASKS["classification"], "en", "hi", [])
    rendered = processor.render(prompt, TASKS["classification"], "hi", [])
    assert found.count == 4
    assert found.ids[found.start : found.start + 4] == [processor.filler_id] * 4
    assert found.ids[: found.start] == processor.encode(rendered.before)
    assert found.ids[found.start + 4 :] == processor.encode(rendered.after)
    assert rendered.before.endswith("Signal: ")


def test_the_preview_marks_the_pseudo_tokens_and_counts_the_others() -> None:
    prompt = template(prefix="Signal: ", suffix="\n")
    text = preview(prompt, TASKS["classification"], "hi", 2, character_tokenizer())
    assert "Signal: ⟦P1⟧⟦P2⟧\nText: hi\nEmotion:⟨neutral | surprise | fear" in text
    assert text.splitlines()[0] == "# mine: meld, en, answer as word"
    after = len("\nText: hi\nEmotion:")
    assert text.splitlines()[-1] == f"# tokens: 8 before, 2 pseudo, {after} after"


def test_the_preview_shortens_a_long_list_of_answers_and_shows_the_chat() -> None:
    prompt = template(kind="regression", answer="number", task="Score:")
    text = preview(prompt, TASKS["regression"], "hi", 1, character_tokenizer(CHATML))
    assert "<user>⟦P1⟧Score:</user><assistant>⟨-1.0 … 1.0 (21 answers)⟩" in text
