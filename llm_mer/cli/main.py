"""``llm-mer``: one subcommand a job. Modules are imported only when their subcommand runs."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_mer.cli.options import parse
from llm_mer.distributed.process_group import shutdown_process_group
from llm_mer.errors import UserError


@dataclass(frozen=True)
class Command:
    """A subcommand: a dataclass of options and a function that takes it, each as ``module:name``."""

    help: str
    config: str
    function: str


COMMANDS: dict[str, Command] = {
    "make-corpus": Command(
        "make the synthetic bilingual corpus of mp4 clips",
        "llm_mer.data.sources.synthetic:CorpusConfig",
        "llm_mer.data.sources.synthetic:make_corpus",
    ),
    "extract": Command(
        "features of every clip of a manifest, as a store",
        "llm_mer.features.extract:ExtractConfig",
        "llm_mer.features.extract:extract_manifest",
    ),
    "prepare": Command(
        "write a public data set's files (NAME PATH) as a store",
        "llm_mer.data.prepare:PrepareConfig",
        "llm_mer.data.prepare:prepare",
    ),
    "validate": Command(
        "check a store or a public data set's files for faults; exit code 2 with errors, 1 with warnings",
        "llm_mer.data.validation.validate:ValidateConfig",
        "llm_mer.data.validation.validate:validate",
    ),
    "train-backbone": Command(
        "train the tiny bilingual backbone",
        "llm_mer.backbones.tiny:TinyBackboneConfig",
        "llm_mer.backbones.tiny:train_tiny_backbone",
    ),
    "convert-chatglm3": Command(
        "turn published ChatGLM3 weights and tokenizer into a GLM folder of transformers",
        "llm_mer.cli.convert:ConvertConfig",
        "llm_mer.cli.convert:run_chatglm3",
    ),
    "convert-llama2c": Command(
        "turn a llama2.c model and tokenizer into a Llama folder of transformers",
        "llm_mer.cli.convert:ConvertConfig",
        "llm_mer.cli.convert:run_llama2c",
    ),
    "merge": Command(
        "a checkpoint with LoRA merged into plain backbone weights",
        "llm_mer.cli.merge:MergeConfig",
        "llm_mer.cli.merge:merge",
    ),
    "prompts list": Command(
        "list the prompt templates", "llm_mer.cli.inspect:PromptsConfig", "llm_mer.cli.inspect:list_prompts"
    ),
    "prompts preview": Command(
        "show what the model reads, pseudo-token positions marked",
        "llm_mer.cli.inspect:PreviewConfig",
        "llm_mer.cli.inspect:preview_prompts",
    ),
    "prompts compare": Command(
        "one checkpoint asked in every prompt and order of labels, or one trained with each",
        "llm_mer.experiments.prompt_comparison:PromptComparisonConfig",
        "llm_mer.cli.compare_prompts:run",
    ),
    "tasks": Command("list the tasks and their labels", "llm_mer.cli.inspect:TasksConfig", "llm_mer.cli.inspect:show_tasks"),
    "info": Command(
        "what a checkpoint or a store says of itself",
        "llm_mer.cli.inspect:InfoConfig",
        "llm_mer.cli.inspect:show_info",
    ),
    "evaluate": Command(
        "scores of a checkpoint with baselines and intervals; predictions kept",
        "llm_mer.evaluation.evaluate:EvaluateConfig",
        "llm_mer.evaluation.over_seeds:run",
    ),
    "report": Command(
        "one self-contained HTML page from evaluations",
        "llm_mer.reporting.report:ReportConfig",
        "llm_mer.reporting.report:run",
    ),
    "reproduce": Command(
        "run a training again from its manifest (RUN) and say whether it comes to the same",
        "llm_mer.training.reproduce:ReproduceConfig",
        "llm_mer.training.reproduce:reproduce",
    ),
    "demo": Command(
        "try a checkpoint in the browser", "llm_mer.cli.serving.demo:DemoConfig", "llm_mer.cli.serving.demo:run"
    ),
    "compare": Command(
        "adapters × ablations × seeds on one backbone, one table",
        "llm_mer.experiments.comparison.systems:CompareConfig",
        "llm_mer.experiments.comparison.compare:run",
    ),
    "crosslingual": Command(
        "trained on English, Chinese or both × tested on each, with the gap to training in the language",
        "llm_mer.experiments.crosslingual:CrosslingualConfig",
        "llm_mer.experiments.crosslingual:run",
    ),
}


def resolve(place: str) -> Any:
    """``module:name`` to the object."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def usage() -> str:
    """The list of subcommands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return (
        "usage: llm-mer COMMAND [options]\n\n" + "\n".join(lines) + "\n\n"
        "llm-mer COMMAND --help lists the options of one. Training is `accelerate launch finetune.py --config FILE`,\n"
        "inference `python infer.py --checkpoint FOLDER …`."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; a user's mistake is one line on standard error and exit code 2.

    What a command returns is printed; a result with an ``exit_code`` of its own sets it.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    name, rest = " ".join(arguments[:words]), arguments[words:]
    if name not in COMMANDS:
        print(f"llm-mer: no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    try:
        config = parse(resolve(command.config), rest, f"llm-mer {name}", command.help)
        result = resolve(command.function)(config)
        shutdown_process_group()
    except UserError as error:
        print(f"llm-mer {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nllm-mer {name}: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    if result is not None:
        print(result)
    return int(getattr(result, "exit_code", 0))


if __name__ == "__main__":
    sys.exit(main())
