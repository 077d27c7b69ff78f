"""One training for each of many seeds, and their results together."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_mer.checkpoints.backbone_reference import identify_backbone
from llm_mer.checkpoints.description import DESCRIPTION_FILE, stack_versions
from llm_mer.checkpoints.run_differences import RunSetup, compare_settings, questions_digest, run_differences
from llm_mer.checkpoints.run_manifest import MANIFEST, RunManifest, weights_digest
from llm_mer.data.reading import read_utterances
from llm_mer.distributed.output_lock import lock_outputs
from llm_mer.distributed.process_group import ProcessGroup
from llm_mer.errors import UserError
from llm_mer.evaluation.spread import SEEDS_FILE, Spread, as_plain, metric_table
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.templates import load_prompts
from llm_mer.storage.atomic_files import write_json_atomically
from llm_mer.training.model_builder import resolve_backbone
from llm_mer.training.run import train
from llm_mer.training.run_config import RunConfig

logger = logging.getLogger(__name__)


def train_seeds(config: RunConfig, command: Sequence[str]) -> Path:
    """Train with each seed into ``OUTPUT/seed-N``, one after another; a finished seed with the same options is kept.

    A seed that was begun resumes from its last complete checkpoint.

    The table of the final evaluations, mean ± std, is printed and written to ``OUTPUT/seeds.json``.

    Raises:
        UserError: a finished seed of other options or data, or as :func:`~llm_mer.training.run.prepare_run`.
    """
    training = config.training
    assert training.seeds is not None
    wanted: object = training.resume_from_checkpoint
    if wanted and wanted not in (True, "true", "True"):
        raise UserError(
            f"resume_from_checkpoint: {wanted!r} with seeds; only true is possible: each seed resumes from its own last "
            "checkpoint"
        )
    if training.overwrite_output_dir:
        raise UserError(
            "overwrite_output_dir: with seeds, what is finished is kept; delete the seeds to train again, or name another "
            "output_dir"
        )
    output = Path(str(training.output_dir))
    if (output / DESCRIPTION_FILE).is_file():
        raise UserError(
            f"output_dir: {output} holds a model, and seeds beside it would be taken for its own, or it for theirs; name "
            "another folder for the seeds"
        )
    with lock_outputs([output], ProcessGroup(training.process_index, training.world_size)):
        return _train_seeds(config, command, output)


def _train_seeds(config: RunConfig, command: Sequence[str], output: Path) -> Path:
    training = config.training
    assert training.seeds is not None
    runs = {seed: config_for_seed(config, seed, output / f"seed-{seed}") for seed in training.seeds}
    done = finished_seeds(output, runs)
    manifests: dict[int, RunManifest] = {}
    for number, seed in enumerate(training.seeds, start=1):
        first = training.process_index == 0
        if first:
            kept = ", finished before" if seed in done else ""
            logger.info("[%d/%d] seed %d%s", number, len(training.seeds), seed, kept)
        if seed not in done:
            # Built again: the trainer before has reset the global state that these arguments depend on.
            own = config_for_seed(config, seed, output / f"seed-{seed}")
            manifests[seed] = train(own, command)
            gc.collect()  # the trainer and its model refer to one another
        else:
            manifests[seed] = done[seed]
    if training.process_index == 0:
        print(summarise_seeds(output, manifests))
    return output


def config_for_seed(config: RunConfig, seed: int, folder: Path) -> RunConfig:
    """The run of one of the seeds; one that was begun resumes from its last checkpoint."""
    resume = True if config.training.resume_from_checkpoint or (folder / MANIFEST).is_file() else None
    return config.replace(seed=seed, seeds=None, output_dir=str(folder), resume_from_checkpoint=resume)


def finished_seeds(output: Path, runs: Mapping[int, RunConfig]) -> dict[int, RunManifest]:
    """Manifests of the seeds that are complete.

    Raises:
        UserError: one that was trained with other options, on other data, or whose weights have changed since.
    """
    found: dict[int, RunManifest] = {}
    for seed in runs:
        if (output / f"seed-{seed}" / MANIFEST).is_file():
            manifest = RunManifest.load(output / f"seed-{seed}")
            if manifest.complete:
                found[seed] = manifest
    if not found:
        return found
    one = next(iter(runs.values()))
    _, _, fingerprint = read_utterances(one.data.data, one.data.folds, one.data.fold)
    prompts = load_prompts(one.data.prompts) if one.model.backbone != "none" else []
    questions = questions_digest([get_task(name) for name in one.data.tasks], prompts)
    backbone = identify_backbone(None if one.model.backbone == "none" else resolve_backbone(one.model.backbone))
    for seed, manifest in found.items():
        folder = output / f"seed-{seed}"
        different = run_differences(manifest.setup(), RunSetup(runs[seed].options(), fingerprint, questions, backbone))
        if different:
            listed = "; ".join(map(str, different))
            raise UserError(f"{folder} holds a finished run that differs: {listed}; name another output_dir or delete it")
        if weights_digest(folder) != manifest.weights_sha256:
            raise UserError(
                f"{folder}: its weights are not those its {MANIFEST} tells of; delete it to train this seed again"
            )
        newer = compare_settings(manifest.versions, stack_versions())
        if newer and one.training.process_index == 0:
            logger.warning("%s is kept, though made with other versions: %s", folder, "; ".join(map(str, newer)))
    return found


def summarise_seeds(output: Path, manifests: dict[int, RunManifest]) -> str:
    """Write ``seeds.json`` and return the table of the final evaluations over seeds."""
    names = dict.fromkeys(name for manifest in manifests.values() for name in manifest.metrics)
    names.pop("epoch", None)
    metrics = {name: Spread.of([m.metrics.get(name) for m in manifests.values()]) for name in names}
    content = {"seeds": list(manifests), "metrics": as_plain(metrics)}
    path = output / SEEDS_FILE
    write_json_atomically(path, content)
    if not metrics:
        return f"{len(manifests)} seeds are trained; without an evaluation split there are no scores"
    shown = {name.removeprefix("eval_"): spread for name, spread in metrics.items() if not name.endswith("_n")}
    return f"{metric_table(list(manifests), shown)}\nwritten to {path}"
