"""The steps of a plan, each done once: features, training, evaluation. The same command goes on where one was stopped."""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from llm_mer.data.sources.manifest import write_manifest
from llm_mer.data.store import write_store
from llm_mer.errors import UserError
from llm_mer.experiments.own_data.plan import FIXED, Folders, Plan
from llm_mer.features.extract import ExtractConfig, extract
from llm_mer.prompting.tasks import Task
from llm_mer.storage.atomic_files import write_json_atomically, write_text_atomically
from llm_mer.storage.json_files import read_json_object
from llm_mer.training.atomic_checkpoints import list_checkpoints
from llm_mer.training.interruption import Interrupted
from llm_mer.training.output_folder import is_finished, overwriting_folder
from llm_mer.training.run import train
from llm_mer.training.run_config import RunConfig

logger = logging.getLogger(__name__)
PLAN_FILE = "plan.json"
"""What the folder was made from, and the steps that are done."""
FEATURES, MODEL, EVALUATION = "features", "model", "evaluation"


class Progress:
    """The steps of a plan that are done, kept in its folder."""

    def __init__(self, folder: Path, inputs: dict[str, Any], done: Sequence[str]) -> None:
        self.folder, self.inputs, self.done = folder, inputs, list(done)

    @classmethod
    def open(cls, plan: Plan) -> Progress:
        """Go on with the plan of the folder, or begin in an empty one; with ``overwrite_output_dir`` a changed plan anew.

        Raises:
            UserError: the folder holds another plan, naming what differs, or something else.
        """
        root, inputs = plan.folders.root, plan.inputs()
        path = root / PLAN_FILE
        if not path.is_file():
            if root.exists() and (not root.is_dir() or any(root.iterdir())):
                raise UserError(f"output_dir: {root} holds what no `train --manifest` wrote; name a new folder")
            root.mkdir(parents=True, exist_ok=True)
            return cls(root, inputs, [])._save()
        saved = read_json_object(path)
        different = describe_differences(saved.get("inputs", {}), inputs)
        if not different:
            return cls(root, inputs, saved.get("done", []))
        if not plan.options.overwrite_output_dir:
            raise UserError(
                f"output_dir: {root} was made otherwise: {'; '.join(different)}; name another --output_dir, or "
                "--overwrite_output_dir true makes it anew"
            )
        remove_unfinished_model(plan.folders)
        return cls(root, inputs, [])._save()

    def run(self, name: str, work: Callable[[], object]) -> None:
        """Do a step unless it is done."""
        if name in self.done:
            logger.info("%s: done before", name)
            return
        work()
        self.done.append(name)
        self._save()

    def _save(self) -> Progress:
        write_json_atomically(self.folder / PLAN_FILE, {"inputs": self.inputs, "done": self.done})
        return self


def describe_differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between the inputs of two plans, in words; digests have no value that would tell anything."""
    opaque = ("the table", "the files of its clips", "the splits")
    found = []
    for name in dict.fromkeys((*saved, *now)):
        before, after = saved.get(name), now.get(name)
        if before == after:
            continue
        if name in opaque or isinstance(before, dict) or isinstance(after, dict):
            found.append(f"{name} changed")
        else:
            found.append(f"{name} {before!r} there, {after!r} here")
    return found


def remove_unfinished_model(folders: Folders) -> None:
    """Delete what a training of another plan left unfinished; a finished model stays until the new one is complete."""
    shutil.rmtree(overwriting_folder(folders.model), ignore_errors=True)
    if folders.model.is_dir() and not is_finished(folders.model):
        shutil.rmtree(folders.model)


def run_steps(plan: Plan, command: Sequence[str], announce: Callable[[str], None]) -> None:
    """Everything up to the evaluation. ``command``: what the run manifest shows as the command line.

    Raises:
        UserError: as :meth:`Progress.open`, and what a step cannot use.
    """
    progress = Progress.open(plan)
    write_inputs(plan)
    announce("features")
    progress.run(FEATURES, lambda: extract_features(plan))
    announce("training")
    progress.run(MODEL, lambda: train_model(plan, command))
    announce("evaluation on the test split")
    progress.run(EVALUATION, lambda: evaluate_model(plan))
    print(plan.folders.scores.read_text(encoding="utf-8"), end="")


def write_inputs(plan: Plan) -> None:
    """The manifest, splits, task files and options that the steps read, and that the longer way takes as well."""
    folders = plan.folders
    write_tasks(plan, folders.tasks)
    write_manifest(plan.utterances, folders.manifest)
    write_json_atomically(folders.splits, {utterance.id: utterance.split for utterance in plan.utterances})
    head = "# The training of this folder; `finetune.py --config` takes it, and any other option with it.\n"
    write_text_atomically(folders.config, head + to_yaml(plan.training))


def write_tasks(plan: Plan, folder: Path) -> list[Path]:
    """One file for each task; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for target, name in zip(plan.targets.learnt, plan.training["tasks"], strict=True):
        path = folder / Path(name).name
        write_text_atomically(path, to_yaml({target.task.name: task_entry(target.task)}))
        written.append(path)
    return written


def task_entry(task: Task) -> dict[str, Any]:
    """A task as its file describes it."""
    return {name: value for name, value in task.to_dict().items() if name != "target" or value != task.name}


def to_yaml(value: Any) -> str:
    """YAML in the order given, Chinese as it is written."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None))


def extract_features(plan: Plan) -> None:
    """The store of the plan, with what its table's columns are noted in it."""
    noted = {"columns": plan.names.to_dict()}
    output = str(plan.folders.features)
    if {plan.features.audio, plan.features.vision, plan.features.text} == {"none"}:  # the backbone reads the words
        write_store(iter(plan.utterances), Path(output), description={"source": plan.table.path.name, **noted})
        return
    config = ExtractConfig(
        **plan.features.to_dict(),
        manifest=str(plan.table.path),
        output=output,
        workers=plan.options.workers,
        on_bad_media=plan.options.on_bad_media,
    )
    extract(config, plan.utterances, description=noted)


def train_model(plan: Plan, command: Sequence[str]) -> None:
    """Train, going on from the last checkpoint of the same plan.

    Raises:
        UserError: what the training refuses. Interrupted: by SIGTERM or Ctrl-C.
    """
    folder = plan.folders.model
    begun = any(list_checkpoints(place) for place in (folder, overwriting_folder(folder)) if place.is_dir())
    given = {name: value for name, value in plan.training.items() if name not in FIXED}
    training = {
        **given,
        "data": str(plan.folders.features),
        "output_dir": str(folder),
        "overwrite_output_dir": is_finished(folder),
        **({"resume_from_checkpoint": "true"} if begun else {}),
    }
    try:
        train(RunConfig.build(training), command)
    except Interrupted as error:
        raise Interrupted(f"{str(error).partition(';')[0]}; the same command goes on from here") from None
    release_memory()


def evaluate_model(plan: Plan) -> None:
    """Scores on the test split, with intervals and the trivial baselines."""
    from llm_mer.evaluation.evaluate import evaluate_checkpoint
    from llm_mer.evaluation.options import EvaluateConfig

    config = EvaluateConfig(checkpoint=str(plan.folders.model), data=[str(plan.folders.features)])
    write_text_atomically(plan.folders.scores, f"{evaluate_checkpoint(config)}\n")
    release_memory()


def release_memory() -> None:
    """Give back what a step held of an accelerator, for the next one."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
