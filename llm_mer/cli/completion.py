"""``llm-mer completion``: a completion script for a shell, made from the options of every command (shtab)."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

EXAMPLES = (
    'eval "$(llm-mer completion bash)"  # in ~/.bashrc',
    "llm-mer completion zsh > ~/.zfunc/_llm-mer  # a folder of your fpath",
)

SHELLS: tuple[str, ...] = ("bash", "zsh")


@dataclass
class Options:
    """Options of ``llm-mer completion``."""

    shell: str = field(
        default="",
        metadata={"help": "shell to write for", "choices": list(SHELLS), "required": True, "positional": True},
    )


def build_complete_parser() -> argparse.ArgumentParser:
    """One parser with all subcommands; text options without choices are completed as files."""
    import shtab

    from llm_mer.cli.main import COMMANDS
    from llm_mer.cli.options import add_options
    from llm_mer.cli.train_help import add_training_options

    root = argparse.ArgumentParser(prog="llm-mer", allow_abbrev=False)
    root.add_argument("--version", action="store_true", help="show the version")
    commands = root.add_subparsers(dest="command")
    groups: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    for name, command in COMMANDS.items():
        first, _, second = name.partition(" ")
        subcommands = commands
        if second:
            if first not in groups:
                groups[first] = commands.add_parser(first, help=f"{first} …").add_subparsers(dest="second")
            subcommands = groups[first]
        parser = subcommands.add_parser(second or first, help=command.help, allow_abbrev=False)
        if command.takes_arguments:
            add_training_options(parser)
        else:
            add_options(parser, command.load().Options)
        for action in parser._actions:
            if action.type is str and action.choices is None:
                setattr(action, "complete", shtab.FILE)  # noqa: B010  # read by shtab; argparse does not declare it
    return root


def run(options: Options) -> str:
    """The completion script."""
    import shtab

    return str(shtab.complete(build_complete_parser(), shell=options.shell))
