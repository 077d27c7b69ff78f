"""The command line: every command resolves, options come from dataclasses, mistakes are one line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import ROOT

from llm_mer.cli.main import COMMANDS, main, resolve
from llm_mer.cli.options import parse
from llm_mer.errors import UserError


@dataclass
class Sample:
    """For the parser."""

    name: str = field(default="", metadata={"help": "a name", "required": True})
    number: int | None = field(default=None, metadata={"help": "100 % optional"})
    words: list[str] = field(default_factory=list, metadata={"help": "words"})
    flag: bool = field(default=False, metadata={"help": "a switch"})
    kind: str = field(default="a", metadata={"help": "one of two", "choices": ["a", "b"]})


@dataclass
class Placed:
    """Two words by place."""

    first: str = field(default="", metadata={"help": "a word", "required": True, "positional": True})
    second: str = field(default="b", metadata={"help": "a word", "positional": True})
    other: str | None = field(default=None, metadata={"help": "an option"})


def test_options_are_typed_and_may_be_written_with_hyphens() -> None:
    assert parse(Sample, ["--name", "x", "--number", "3", "--words", "p", "q", "--flag"], "p") == Sample(
        "x", 3, ["p", "q"], True, "a"
    )
    assert parse(Sample, ["--name", "x", "--flag", "false", "--kind", "b"], "p") == Sample("x", None, [], False, "b")


def test_a_missing_required_option_is_named_with_its_meaning() -> None:
    with pytest.raises(UserError, match=r"--name is required: a name"):
        parse(Sample, [], "p")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["x"], Placed("x")),
        (["x", "y", "--other", "z"], Placed("x", "y", "z")),
        (["x", "--other", "z", "y"], Placed("x", "y", "z")),
        (["--other", "z", "x"], Placed("x", "b", "z")),
        (["--first", "x", "--second", "y"], Placed("x", "y")),
    ],
)
def test_options_marked_so_are_read_by_place_as_well(argv: list[str], expected: Placed) -> None:
    assert parse(Placed, argv, "p") == expected


def test_a_word_too_many_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Placed, ["x", "y", "z"], "p")
    assert "unrecognized arguments: z" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--kind", "c"], ["--number", "three"], ["--nam", "x"], ["--flag", "perhaps"]])
def test_what_the_options_do_not_know_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Sample, ["--name", "x", *argv], "p")
    assert stop.value.code == 2
    assert argv[0] in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_resolves_and_every_option_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = resolve(COMMANDS[name].config)
    assert callable(resolve(COMMANDS[name].function))
    for entry in dataclasses.fields(config):
        assert entry.metadata.get("help"), f"{name}: --{entry.name} has no help"
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert "options" in capsys.readouterr().out


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2
    printed = capsys.readouterr().err
    assert "'fly'" in printed
    assert "make-corpus" in printed


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--path", str(tmp_path)]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.count("\n") == 0
    assert str(tmp_path) in printed


def test_tasks_lists_every_task_with_both_languages(capsys: pytest.CaptureFixture[str]) -> None:
    from llm_mer.prompting.tasks import builtin_tasks

    assert main(["tasks"]) == 0
    printed = capsys.readouterr().out
    for task in builtin_tasks().values():
        assert f"{task.name} ({task.kind}" in printed
        for label in task.labels:
            assert f"{label.words['en']} {label.words['zh']}" in printed


def test_prompts_preview_marks_the_pseudo_tokens_and_shows_both_languages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "preview", "--template", "short", "--pseudo_tokens", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("⟦P1⟧⟦P2⟧⟦P3⟧") == 2
    assert "joy" in printed
    assert "高兴" in printed


def test_a_backbone_and_a_prompt_file_that_cannot_be_read_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = tmp_path / "mine.yaml"
    prompt.write_bytes("task: \u00e9".encode("latin-1"))
    cases = {"--backbone": "no-such/backbone", "--template": str(prompt)}
    for option, value in [*cases.items(), ("--backbone", str(tmp_path))]:
        assert main(["prompts", "preview", option, value]) == 2
        printed = capsys.readouterr().err.strip()
        assert printed.count("\n") == 0
        assert value in printed


def test_prompts_list_names_every_shipped_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "list"]) == 0
    printed = capsys.readouterr().out
    for path in (ROOT / "prompts").glob("*.yaml"):
        assert path.stem in printed


def test_info_describes_a_checkpoint_and_a_store(trained: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--path", str(trained)]) == 0
    assert '"adapter": "egmf"' in capsys.readouterr().out
    assert main(["info", "--path", str(store)]) == 0
    assert '"train": 96' in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_parses(path: Path) -> None:
    from llm_mer.model.configuration_mer import build_adapter_config
    from llm_mer.prompting.tasks import get_task
    from llm_mer.training.checks import check_loss_weights
    from llm_mer.training.parsing import parse_arguments

    data, model, _, options = parse_arguments(["--config", str(path)])
    assert [get_task(name).name for name in data.tasks]
    build_adapter_config(model.adapter, options)
    assert check_loss_weights(model)["lm"] == 1.0
