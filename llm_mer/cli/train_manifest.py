"""``llm-mer train --manifest``: from a table of your own clips to a model, its scores and a report, in one command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.experiments.own_data.options import OwnDataOptions

if TYPE_CHECKING:
    from llm_mer.experiments.own_data.plan import Plan


def train_manifest(arguments: Sequence[str], program: str) -> Path:
    """Show the plan and, unless it is a dry run, do it; returns the folder of the model.

    Raises:
        UserError: a table, options or a folder that do not fit.
    """
    options, given = parse(arguments, program)
    if ProcessGroup.join().world_size > 1:
        raise UserError(
            "--manifest makes the data in one process; run it by itself, or with --dry_run first, and give what it wrote to "
            "several: accelerate launch finetune.py --config OUTPUT/config.yaml"
        )
    from llm_mer.experiments.own_data.description import describe_plan
    from llm_mer.experiments.own_data.plan import make_plan
    from llm_mer.experiments.own_data.steps import run_steps, write_tasks
    from llm_mer.storage.locks import lock_output

    plan = make_plan(options, given)
    print(describe_plan(plan), flush=True)
    if options.dry_run:
        if options.write_tasks:
            files = " ".join(str(path) for path in write_tasks(plan, Path(options.write_tasks)))
            print(f"task files, to be changed and given as --tasks: {files}")
        print("nothing was done; without --dry_run this plan is run")
        return plan.folders.model
    with lock_output(plan.folders.root):
        run_steps(plan, [program, *arguments], lambda text: print(f"\n== {text}", flush=True))
        report(plan)
    print(f"\n{closing_lines(plan)}", flush=True)
    return plan.folders.model


def parse(arguments: Sequence[str], program: str) -> tuple[OwnDataOptions, dict[str, Any]]:
    """The options of the plan, and those of the training that were named.

    Raises:
        UserError: an option that neither has, or one with a wrong value.
    """
    from llm_mer.cli.options import build_parser
    from llm_mer.training.parsing import parse_given

    words = [_underscored(word) for word in arguments]
    own, rest = build_parser(OwnDataOptions, program).parse_known_args(words)
    options = OwnDataOptions(**vars(own))
    if not options.manifest:
        raise UserError("--manifest: name a table, .csv, .tsv or .jsonl")
    return options, parse_given(rest)


def report(plan: Plan) -> None:
    """Write the HTML report of the evaluation."""
    from llm_mer.reporting.options import ReportConfig
    from llm_mer.reporting.report import run

    config = ReportConfig(
        evaluations=[str(plan.folders.model)],
        title=f"{plan.table.path.name}: {', '.join(target.column for target in plan.targets.learnt)}",
        output=str(plan.folders.report),
    )
    print(run(config))


def closing_lines(plan: Plan) -> str:
    """What was made, and commands that use it: for one of the test clips, and for the whole table."""
    clip = next(utterance for utterance in plan.utterances if utterance.split == "test")
    command = ["llm-mer", "infer", "--checkpoint", str(plan.folders.model)]
    one = [*command, *(["--video", clip.vision] if clip.vision else [])]
    one += ["--audio", clip.audio] if clip.audio and clip.audio != clip.vision else []
    one += ["--text", clip.text] if clip.text else []
    one += ["--language", clip.language]
    table = [*command, "--manifest", str(plan.table.path), "--output", str(plan.folders.root / "answers.jsonl")]
    return "\n".join(
        (
            f"model: {plan.folders.model}   report: {plan.folders.report}",
            "answers about a new clip, as about this one of the test split:",
            f"  {shlex.join(one)}",
            "about every row of a table like yours:",
            f"  {shlex.join(table)}",
        )
    )


def _underscored(word: str) -> str:
    """``--dry-run`` as ``--dry_run``, its value as it is."""
    name, separator, value = word.partition("=")
    if not word.startswith("--"):
        return word
    return f"--{name[2:].replace('-', '_')}{separator}{value}"
