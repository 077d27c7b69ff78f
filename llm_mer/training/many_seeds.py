"""One training for each of many seeds, and what they come to together."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_mer.checkpoints.description import stack_versions
from llm_mer.checkpoints.run_differences import differences, flat_setup, given_options, questions_digest
from llm_mer.checkpoints.run_manifest import MANIFEST, RunManifest, plain, weights_digest
from llm_mer.data.reading import read_utterances
from llm_mer.errors import UserError
from llm_mer.evaluation.spread import SEEDS_FILE, Spread, as_plain, metric_table
from llm_mer.prompting.tasks import get_task
from llm_mer.prompting.templates import load_prompts
from llm_mer.training.arguments import MerTrainingArguments
from llm_mer.training.options import DataArguments, ModelArguments
from llm_mer.training.run import prepare_run, train_run

logger = logging.getLogger(__name__)


def train_seeds(
    data: DataArguments,
    model: ModelArguments,
    training: MerTrainingArguments,
    adapter_options: dict[str, Any],
    command: Sequence[str],
) -> Path:
    """Train with each seed into ``OUTPUT/seed-N``, one after another; a finished seed with the same options is kept.

    The table of the final evaluations, mean ± std, is printed and written to ``OUTPUT/seeds.json``.

    Raises:
        UserError: a finished seed of other options or data, or as :func:`~llm_mer.training.run.prepare_run`.
    """
    assert training.seeds is not None
    if training.resume_from_checkpoint and training.resume_from_checkpoint not in (True, "true", "True"):
        raise UserError(
            f"resume_from_checkpoint: {training.resume_from_checkpoint!r} with seeds; only true is right there: each seed "
            "goes on from its own last checkpoint"
        )
    output = Path(str(training.output_dir))
    done = finished_seeds(output, data, model, training, adapter_options)
    manifests: dict[int, RunManifest] = {}
    for number, seed in enumerate(training.seeds, start=1):
        place = output / f"seed-{seed}"
        first = training.process_index == 0
        if first:
            kept = ", finished before" if seed in done else ""
            logger.warning("[%d/%d] seed %d%s", number, len(training.seeds), seed, kept)
        if seed not in done:
            own = for_seed(training, seed, place)
            manifests[seed] = train_run(prepare_run(data, model, own, adapter_options, command))
            gc.collect()  # the trainer and its model refer to one another
        else:
            manifests[seed] = done[seed]
    if training.process_index == 0:
        print(summarise_seeds(output, manifests))
    return output


def for_seed(training: MerTrainingArguments, seed: int, place: Path) -> MerTrainingArguments:
    """The trainer's arguments for one of the seeds, built anew from what was given."""
    resume = training.resume_from_checkpoint
    own = {"seed": seed, "seeds": None, "output_dir": str(place), "resume_from_checkpoint": True if resume else None}
    return MerTrainingArguments(**{**training.given, **own})


def finished_seeds(
    output: Path,
    data: DataArguments,
    model: ModelArguments,
    training: MerTrainingArguments,
    adapter_options: dict[str, Any],
) -> dict[int, RunManifest]:
    """Manifests of the seeds that are whole.

    Raises:
        UserError: one that was trained with other options, on other data, or whose weights have changed since.
    """
    assert training.seeds is not None
    found: dict[int, RunManifest] = {}
    for seed in training.seeds:
        if (output / f"seed-{seed}" / MANIFEST).is_file():
            manifest = RunManifest.load(output / f"seed-{seed}")
            if manifest.complete:
                found[seed] = manifest
    if not found:
        return found
    _, _, fingerprint = read_utterances(data.data)
    prompts = load_prompts(data.prompts) if model.backbone != "none" else []
    questions = questions_digest([get_task(name) for name in data.tasks], prompts)
    for seed, manifest in found.items():
        place = output / f"seed-{seed}"
        options = {
            "data": given_options(data),
            "model": given_options(model),
            "training": {**training.given, "seed": seed},
            "adapter": adapter_options,
        }
        options = {name: plain(values) for name, values in options.items()}
        had = flat_setup(manifest.options, str(manifest.data.get("fingerprint")), manifest.questions_sha256)
        different = differences(had, flat_setup(options, fingerprint, questions))
        if different:
            raise UserError(
                f"{place} holds a finished run that differs: {'; '.join(different)}; name another output_dir or delete it"
            )
        if weights_digest(place) != manifest.weights_sha256:
            raise UserError(
                f"{place}: its weights are not those its {MANIFEST} tells of; delete it to train this seed again"
            )
        newer = differences(manifest.versions, stack_versions())
        if newer and training.process_index == 0:
            logger.warning("%s is kept, though made with other versions: %s", place, "; ".join(newer))
    return found


def summarise_seeds(output: Path, manifests: dict[int, RunManifest]) -> str:
    """Write ``seeds.json`` and return the table of the final evaluations over seeds."""
    names = dict.fromkeys(name for manifest in manifests.values() for name in manifest.metrics)
    names.pop("epoch", None)
    metrics = {name: Spread.of([m.metrics.get(name) for m in manifests.values()]) for name in names}
    content = {"seeds": list(manifests), "metrics": as_plain(metrics)}
    path = output / SEEDS_FILE
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if not metrics:
        return f"{len(manifests)} seeds are trained; without an evaluation split there are no scores"
    shown = {name.removeprefix("eval_"): spread for name, spread in metrics.items() if not name.endswith("_n")}
    return f"{metric_table(list(manifests), shown)}\nwritten to {path}"
