"""``llm-mer reproduce``: run a training again from its manifest and say whether it comes to the same."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mer.adapters import use_adapter
from llm_mer.checkpoints.run_differences import compare_settings, run_differences
from llm_mer.checkpoints.run_manifest import RunManifest, weights_digest, weights_file
from llm_mer.distributed.torch_threads import torch_threads
from llm_mer.errors import UserError
from llm_mer.training.declared_options import options_of
from llm_mer.training.options import SECRETS
from llm_mer.training.reproduce_options import ReproduceConfig


@dataclass
class Agreement:
    """What two runs of one manifest have in common.

    Attributes:
        weights: whether the trained weights are equal bit for bit; None where a run has none.
        weight_difference: largest absolute difference of any value; None where they cannot be compared one by one.
        metrics: ``{name: (then, now, difference)}``; the difference is None where only one run has the metric.
        tolerance: the largest difference of a metric that agrees.
    """

    weights: bool | None
    weight_difference: float | None
    metrics: dict[str, tuple[float | None, float | None, float | None]]
    tolerance: float

    @property
    def largest(self) -> float:
        """The largest difference of a metric; infinite where one run lacks a metric of the other."""
        found = [float("inf") if d is None else d for _, _, d in self.metrics.values()]
        return max(found, default=0.0)

    @property
    def agrees(self) -> bool:
        """Metrics agree within the tolerance; without metrics the weights have to be equal."""
        return self.largest <= self.tolerance and (bool(self.metrics) or self.weights is True)


@dataclass(frozen=True)
class Reproduction:
    """What a run that was repeated came to, and where it lies; printed as a text."""

    agreement: Agreement
    output: Path

    @property
    def exit_code(self) -> int:
        """0 where the runs agree, else 1."""
        return 0 if self.agreement.agrees else 1

    def __str__(self) -> str:
        """The comparison as text."""
        agreement = self.agreement
        if agreement.weights is None:
            weights = "weights: not compared, a run has none"
        elif agreement.weights:
            weights = "weights: equal bit for bit"
        else:
            by = agreement.weight_difference
            weights = "weights: not equal" + ("" if by is None else f"; the largest difference of a value is {by:.3g}")
        lines = [weights]
        if agreement.metrics:
            width = max(map(len, agreement.metrics))
            lines.append(f"{'metric':<{width}}  {'then':>12}  {'now':>12}  difference")
        for name, (then, now, difference) in agreement.metrics.items():
            shown = ["–" if value is None else f"{value:.6f}" for value in (then, now)]
            mark = "only in one" if difference is None else f"{difference:.3g}"
            lines.append(f"{name:<{width}}  {shown[0]:>12}  {shown[1]:>12}  {mark}")
        if agreement.agrees and agreement.weights and agreement.largest == 0:
            verdict = "agrees bit for bit"
        elif agreement.agrees:
            verdict = f"agrees: every metric within {agreement.tolerance:g}"
        elif agreement.metrics:
            verdict = f"does not agree: a metric differs by {agreement.largest:.3g}, more than {agreement.tolerance:g}"
        else:
            verdict = "does not agree: the weights differ, and there are no metrics"
        return "\n".join([*lines, verdict, f"the new run is in {self.output}"])


def compare_runs(then: RunManifest, now: RunManifest, old: Path, new: Path, tolerance: float) -> Agreement:
    """Weights by the digests of both manifests, metrics one by one."""
    equal = None
    if then.weights_sha256 is not None and now.weights_sha256 is not None:
        equal = then.weights_sha256 == now.weights_sha256
    metrics: dict[str, tuple[float | None, float | None, float | None]] = {}
    for name in dict.fromkeys([*then.metrics, *now.metrics]) if then.metrics else ():  # else the weights decide
        one, two = then.metrics.get(name), now.metrics.get(name)
        if one is None or two is None:
            both = name in then.metrics and name in now.metrics and one is two
            metrics[name] = (one, two, 0.0 if both else None)
        else:
            metrics[name] = (one, two, abs(two - one))
    difference = 0.0 if equal else largest_weight_difference(old, new)
    return Agreement(equal, difference, metrics, tolerance)


def largest_weight_difference(old: Path, new: Path) -> float | None:
    """Over all values of both checkpoints; None where one is missing or has other names or shapes."""
    from safetensors.torch import load_file

    places = weights_file(old), weights_file(new)
    if places[0] is None or places[1] is None:
        return None
    one, two = load_file(places[0]), load_file(places[1])
    if {n: v.shape for n, v in one.items()} != {n: v.shape for n, v in two.items()}:
        return None
    return max((float((one[n].double() - two[n].double()).abs().max()) for n in one if one[n].numel()), default=0.0)


def known_options(kind: type, options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options of a manifest that this version knows, by their dataclass, and notes on those that one of both lacks.

    Raises:
        UserError: an unknown option that was given a value, which the run cannot do without.
    """
    known = {entry.name for entry in dataclasses.fields(kind)}
    unknown = sorted(set(options) - known)
    needed = [name for name in unknown if options[name] not in (None, False, [], {}, "")]
    if needed:
        raise UserError(f"options {needed} of the run are unknown to this version; install the versions of its manifest")
    settable = {option.name for option in options_of(kind)}
    missing = sorted(settable - set(options) - set(SECRETS))
    notes = [f"option {name}: unknown to this version, left out" for name in unknown]
    notes += [f"option {name}: not in the manifest, its default now" for name in missing]
    return {name: value for name, value in options.items() if name in settable}, notes


def locate_backbone(then: RunManifest, folder: Path, override: str) -> str:
    """Where to load the backbone from: an override, where it lay, or the copy in the checkpoint."""
    name = override or str(then.options["model"]["backbone"])
    copies = (folder / "backbone", folder.parent / "backbone")
    local = then.backbone is not None and then.backbone.get("fingerprint") is not None
    if not override and local and not name.startswith("tiny:") and not Path(name).is_dir():
        return next((str(copy) for copy in copies if (copy / "config.json").is_file()), name)
    return name


def _fingerprint(manifest: RunManifest) -> str:
    found = (manifest.backbone or {}).get("fingerprint")
    return "none" if found is None else str(found)[:12]


def reproduce(config: ReproduceConfig) -> Reproduction | None:
    """Run the training of ``run_manifest.json`` again, evaluate it, and compare.

    Returns:
        What differed before, then every metric then, now and their difference; exit code 0 when the runs agree, else 1.

    Raises:
        UserError: no finished run, data that are missing or have changed, a changed backbone, or an output that exists.
    """
    from llm_mer.training.atomic_checkpoints import list_checkpoints
    from llm_mer.training.output_folder import claim_output
    from llm_mer.training.run import prepare_run, train_run
    from llm_mer.training.run_config import RunConfig

    folder = Path(config.run)
    then = RunManifest.load(folder)
    if config.adapter is not None:
        use_adapter(config.adapter)
    _check_reproducible(then, folder)
    output = _new_output(config, folder)
    source = _check_data(config, then)
    backbone = locate_backbone(then, folder, config.backbone)
    given, notes = _recorded_options(then)
    moved = {"data": source, "backbone": backbone, "output_dir": str(output)}
    if (folds := config.folds or then.options["data"].get("folds")) is not None:
        moved["folds"] = str(folds)
    resume = True if list_checkpoints(output) else None
    repeated = RunConfig.build(
        {**given, **moved, "resume_from_checkpoint": resume, "overwrite_output_dir": False, "seeds": None}
    )
    with torch_threads(then.hardware.threads), claim_output(repeated) as place:
        run = prepare_run(repeated, then.command)
        notes += _setup_differences(then, run.manifest, backbone)
        if weights_file(folder) is not None and weights_digest(folder) != then.weights_sha256:
            notes.append(f"the weights in {folder} are not those that its manifest tells of; the manifest's are compared")
        first = run.trainer.is_world_process_zero()
        if first:
            print(
                "\n".join(["differs from then:", *(f"  {note}" for note in notes)] if notes else ["all is as it was then"])
            )
        now = train_run(run, place)
    if not first:
        return None
    return Reproduction(compare_runs(then, now, folder, output, config.tolerance), output)


def _check_reproducible(then: RunManifest, folder: Path) -> None:
    """Raises :class:`UserError` for a run that left nothing to compare with."""
    if not then.complete:
        raise UserError(f"{folder}: the run was not finished; there is nothing to agree with")
    if not then.metrics and then.weights_sha256 is None:
        raise UserError(f"{folder}: the run left neither weights nor metrics; there is nothing to agree with")


def _new_output(config: ReproduceConfig, folder: Path) -> Path:
    output = Path(config.output or f"{str(folder).rstrip('/')}-reproduced")
    from llm_mer.training.output_folder import finished_content

    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: it is a file; name a folder")
    # What an interrupted reproduction left is gone on with.
    if (content := finished_content(output, resuming=True)) is not None:
        raise UserError(f"--output {output}: it is there already, and {content}; name another folder or delete it")
    return output


def _check_data(config: ReproduceConfig, then: RunManifest) -> str:
    """The data of the run, at their old or new location. Raises :class:`UserError` if they are missing or have changed."""
    from llm_mer.data.reading import read_utterances

    options = then.options["data"]
    source = config.data or str(options["data"])
    if config.folds and options.get("fold") is None:
        raise UserError(f"--folds {config.folds}: the run was trained on no fold; leave it out")
    try:
        _, _, fingerprint = read_utterances(source, config.folds or options.get("folds"), options.get("fold"))
    except UserError as error:
        if config.data:
            raise
        now = "--data" if options.get("fold") is None else "--data, their folds with --folds"
        raise UserError(f"{error}; name where the data lie now with {now}") from None
    if fingerprint != then.data.get("fingerprint"):
        raise UserError(
            f"data: {source} has fingerprint {fingerprint[:12]}, the run was trained on "
            f"{str(then.data.get('fingerprint'))[:12]}: the data have changed"
        )
    return source


def _recorded_options(then: RunManifest) -> tuple[dict[str, Any], list[str]]:
    """The options of a manifest that this version knows, and notes on the others."""
    from llm_mer.training.arguments import MerTrainingArguments
    from llm_mer.training.options import DataArguments, ModelArguments
    from llm_mer.training.run_config import config_class_of

    given: dict[str, Any] = {}
    notes: list[str] = []
    adapter = config_class_of(str(then.options["model"]["adapter"]))
    kinds = {"data": DataArguments, "model": ModelArguments, "adapter": adapter, "training": MerTrainingArguments}
    for group, kind in kinds.items():
        values, found = known_options(kind, then.options[group])
        given |= values
        notes += found
    return given, notes


def _setup_differences(then: RunManifest, now: RunManifest, backbone: str) -> list[str]:
    """Differences between two runs' surroundings and options. Raises :class:`UserError` for another backbone."""
    different = run_differences(then.setup(), now.setup())
    if any(difference.name == "backbone" for difference in different):
        raise UserError(
            f"backbone: {backbone} has fingerprint {_fingerprint(now)}, the run was trained on "
            f"{_fingerprint(then)}; name the right one with --backbone"
        )
    surroundings = compare_settings(then.surroundings(), now.surroundings())
    return [str(difference) for difference in (*surroundings, *different)]
