"""The command line: every command resolves, options come from dataclasses, mistakes are one line."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import ROOT

from llm_mer import __version__
from llm_mer.cli.main import COMMANDS, main
from llm_mer.cli.options import parse
from llm_mer.cli.train_help import short_help
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
    command = COMMANDS[name].load()
    assert callable(command.run)
    if not COMMANDS[name].takes_arguments:
        for entry in dataclasses.fields(command.Options):
            assert entry.metadata.get("help"), f"{name}: --{entry.name} has no help"
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert "options" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(name for name, command in COMMANDS.items() if not command.takes_arguments))
def test_every_help_ends_with_examples_that_the_command_itself_would_take(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = COMMANDS[name].load()
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    printed = capsys.readouterr().out
    assert command.EXAMPLES
    for example in command.EXAMPLES:
        assert f"\n  {example}\n" in printed
        words = shlex.split(example.removeprefix('eval "$(').replace(')"', ""), comments=True)
        begins = ["python", "infer.py"] if name == "infer" else ["llm-mer", *name.split()]
        assert words[: len(begins)] == begins
        given = words[len(begins) :]
        given = given[: given.index(">")] if ">" in given else given
        parse(command.Options, given, name)


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


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["evalute"], "unknown command 'evalute'; did you mean evaluate?"),
        (["prompts"], "'prompts' needs a second word: prompts list, prompts preview, prompts compare"),
    ],
)
def test_an_unknown_command_names_the_one_that_is_most_like_it(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["info", "--pth", "x"], "llm-mer info: unknown option --pth; did you mean --path?"),
        (["info", "--pat=x"], "llm-mer info: unknown option --pat; did you mean --path?"),  # no abbreviations
        (["evaluate", "--batch_sise", "3"], "llm-mer evaluate: unknown option --batch_sise; did you mean --batch_size?"),
        (["tasks", "extra"], "llm-mer tasks: unrecognized arguments: extra"),
        (["infer", "--batch_size", "many"], "llm-mer infer: argument --batch_size/--batch-size: invalid int value: 'many'"),
    ],
)
def test_a_wrong_option_is_one_line_without_the_usage(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(message)
    assert len(printed.splitlines()) == 1


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llm-mer {__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_completion_script_is_valid_and_knows_every_command_and_option(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert name.split()[-1] in script
        if not command.takes_arguments:
            assert all(f"--{entry.name}" in script for entry in dataclasses.fields(command.load().Options))
    shown = [line.split()[0] for line in short_help("llm-mer train").splitlines() if line.startswith("  --")]
    assert len(shown) > 25
    assert all(option in script for option in shown)
    if shutil.which(shell):
        (tmp_path / "script").write_text(script, encoding="utf-8")
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


def test_the_bash_completion_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def completed(*words: str) -> list[str]:
        asked = " ".join(shlex.quote(word) for word in words)
        ask = f"COMP_WORDS=({asked}); COMP_CWORD={len(words) - 1}; _shtab_llm_mer; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        result = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        return result.stdout.split()

    assert completed("llm-mer", "evalu") == ["evaluate"]
    assert completed("llm-mer", "evaluate", "--resam") == ["--resamples"]
    assert set(completed("llm-mer", "prompts", "")) >= {"list", "preview", "compare"}
    assert completed("llm-mer", "train", "--num_train") == ["--num_train_epochs"]
    assert set(completed("llm-mer", "train", "--quantization", "")) == {"none", "int8", "nf4"}


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

    config = parse_arguments(["--config", str(path)])
    assert [get_task(name).name for name in config.data.tasks]
    build_adapter_config(config.model.adapter, config.adapter_options)
    assert check_loss_weights(config.model)["lm"] == 1.0
