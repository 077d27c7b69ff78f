"""Help of training: the commonly used options by group, or all of them on request."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from llm_mer.cli.options import build_parser
from llm_mer.experiments.own_data.options import OwnDataOptions
from llm_mer.training.declared_options import Option, options_of
from llm_mer.training.options import GROUPS, DataArguments, ModelArguments, TrainingOptions

HELP = ("-h", "--help")
HELP_ALL = "--help_all"
EXAMPLES = (
    "llm-mer train --manifest clips.csv --dry_run",
    "accelerate launch finetune.py --config configs/quickstart.yaml --data runs/quickstart/features",
    "llm-mer train --config configs/mosi.yaml --adapter lsgmer --num_train_epochs 5 --output_dir runs/lsgmer",
    "torchrun --standalone --nproc_per_node 2 finetune.py --config configs/mosi.yaml --seeds 1111 2222 3333",
)
MANIFEST = "--manifest"
MANIFEST_EXAMPLES = (
    "llm-mer train --manifest clips.csv --dry_run",
    "llm-mer train --manifest clips.csv --range pleasure=0:100 --output_dir runs/mine",
    "llm-mer train --manifest clips.csv --backbone Qwen/Qwen2.5-0.5B-Instruct --num_train_epochs 5",
)
ABOUT_CONFIG = "YAML file of options, your own or a shipped one; command-line options override it"


def requested_help(arguments: Sequence[str], program: str) -> str | None:
    """The help that a command line requests; None if it requests none."""
    words = [word.replace("-", "_").replace("__", "--", 1) if word.startswith("--") else word for word in arguments]
    if names_manifest(words) and any(word in HELP for word in words):
        return manifest_help(program)
    if HELP_ALL in words:
        adapter_names = [b for a, b in zip(words, arguments[1:], strict=False) if a == "--adapter"]
        adapter_names += [word.partition("=")[2] for word in words if word.startswith("--adapter=")]
        return full_help(program, adapter_names[-1] if adapter_names else ModelArguments.adapter)
    if any(word in HELP for word in words):
        return short_help(program)
    return None


def short_help(program: str) -> str:
    """The options that belong to a group, without heavy imports."""
    declared = _declared()
    groups = {name: [option for option in declared if option.group == name] for name in GROUPS}
    more = (
        f"{HELP_ALL} [--adapter NAME] shows all options, including those of an adapter.\n"
        "--manifest FILE makes everything from a table of your own clips, to a report; --manifest FILE --help shows how."
    )
    return _format(program, groups, more)


def names_manifest(arguments: Sequence[str]) -> bool:
    """Whether a command line of training begins with a table of one's own."""
    return any(word == MANIFEST or word.startswith(f"{MANIFEST}=") for word in arguments)


def manifest_help(program: str) -> str:
    """The options of ``train --manifest``."""
    about = "From a table of your own clips to a model, its scores and a report. Any option of a training goes with it."
    return build_parser(OwnDataOptions, program, about, MANIFEST_EXAMPLES).format_help()


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :func:`short_help` and all others of data and model, for shell completion."""
    parser.add_argument("--config", type=str, help=ABOUT_CONFIG)
    parser.add_argument(HELP_ALL, action="store_true", help="all options, including those of an adapter")
    declared = {option.name: option for option in [*options_of(OwnDataOptions), *_declared()]}
    for option in declared.values():
        nargs = "+" if option.item is not None else None
        choices = list(map(str, option.choices)) if option.choices else None
        parser.add_argument(f"--{option.name}", type=str, choices=choices, nargs=nargs, help=option.help.replace("%", "%%"))


def _declared() -> list[Option]:
    return [option for group in (TrainingOptions, DataArguments, ModelArguments) for option in options_of(group)]


def full_help(program: str, adapter: str) -> str:
    """All options of a run with this adapter. Imports transformers and TRL, which declare most of them.

    Raises:
        UserError: an unknown adapter.
    """
    from llm_mer.adapters import use_adapter
    from llm_mer.training.run_config import option_groups_of_run

    return _format(program, option_groups_of_run(use_adapter(adapter)), "")


def _format(program: str, groups: dict[str, list[Option]], more: str) -> str:
    lines = ["examples:", *(f"  {line}" for line in EXAMPLES), *(["", more] if more else [])]
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} --config FILE.yaml [--option value …]",
        description="Fine-tune a checkpoint.",
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        if title == next(iter(groups)):
            group.add_argument("--config", metavar="FILE.yaml", help=ABOUT_CONFIG)
        _add(group, options)
    return parser.format_help()


def _add(group: argparse._ArgumentGroup, options: Iterable[Option]) -> None:
    for option in options:
        text = option.help.replace("%", "%%")
        if option.default not in (None, "", []):
            shown = " ".join(map(str, option.default)) if isinstance(option.default, list) else option.default
            text += f" (default: {str(shown).replace('%', '%%')})"
        metavar = (
            "{" + ",".join(map(str, option.choices)) + "}" if option.choices else option.name.rpartition("_")[2].upper()
        )
        group.add_argument(f"--{option.name}", metavar=metavar, help=text, nargs="+" if option.item is not None else None)
