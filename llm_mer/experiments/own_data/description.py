"""The plan as text: what was read, what will be learnt and why, what will be written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llm_mer.data.schema import SPLITS
from llm_mer.data.sources.column_names import ID_FROM_FILE, ID_FROM_ROW
from llm_mer.experiments.own_data.plan import Plan
from llm_mer.experiments.own_data.splitting import count_labels
from llm_mer.experiments.own_data.table import describe_fields
from llm_mer.experiments.own_data.targets import Target

IDS = {
    ID_FROM_FILE: "; ids are the names of the files",
    ID_FROM_ROW: "; ids are the numbers of the lines",
}
FEW_TESTED = 30
"""Below so many test clips scores are said to be uncertain."""


def describe_plan(plan: Plan) -> str:
    """The whole plan, for ``--dry_run`` and before its steps."""
    spoken = Counter(utterance.language for utterance in plan.utterances)
    languages = ", ".join(f"{count} {language}" for language, count in sorted(spoken.items()))
    read = f"{describe_fields(plan.fields)}{IDS.get(plan.names.id_from, '')}"
    lines = [f"{plan.table.path}: {len(plan.utterances)} clips ({languages}); read as {read}", "", "learnt"]
    for target in plan.targets.learnt:
        lines += [f"  {line}" for line in _target_lines(target)]
    if plan.targets.left_out:
        lines += ["not learnt", *(f"  {column!r}: {reason}" for column, reason in plan.targets.left_out.items())]
    lines += ["splits", f"  {plan.splits.how}"]
    lines += [f"  {line}" for line in _split_lines(plan)]
    lines += ["model", *(f"  {line}" for line in _model_lines(plan))]
    folders = plan.folders
    written = ("manifest", "splits", "tasks", "config", "features", "model", "scores", "report")
    lines += ["written", f"  {folders.root}: " + ", ".join(getattr(folders, name).name for name in written)]
    lines += [f"warning: {warning}" for warning in warnings_of(plan)]
    return "\n".join(lines)


def _target_lines(target: Target) -> list[str]:
    task = target.task
    if task.kind == "classification":
        counts = Counter(task.label_names[task.class_index(c.text)] for c in target.cells if not task.ignores(c.text))
        what = "labels " + ", ".join(f"{name} {counts.get(name, 0)}" for name in task.label_names)
    else:
        low, high = task.require_range()
        what = f"score from {low:g} to {high:g} in steps of {10**-task.decimals:g}"
    question = " / ".join(task.question.values()) or "none in its file, so its templates ask"
    lines = [f"{target.column!r}: {what} ({target.origin}; {len(target.cells)} rows)", f"  question: {question}"]
    return lines + [f"  {note}" for note in target.notes]


def _split_lines(plan: Plan) -> list[str]:
    counts = Counter(plan.splits.names)
    lines = [", ".join(f"{split} {counts.get(split, 0)}" for split in SPLITS)]
    for target in plan.targets.learnt:
        task = target.task
        if task.kind != "classification":
            continue
        found = count_labels(plan.utterances, plan.splits.names, task)
        shown = [" ".join(f"{name} {found[s].get(name, 0)}" for name in task.label_names) for s in SPLITS]
        lines.append(f"{target.column!r}: " + "; ".join(f"{s} {text}" for s, text in zip(SPLITS, shown, strict=True)))
    return lines


def _model_lines(plan: Plan) -> list[str]:
    features, training = plan.features, plan.config.training
    backbone = plan.config.model.backbone
    notes = {
        "none": "none: the adapter's own head answers",
        "tiny:llama": "tiny:llama: made on the spot, and knows few words; a pretrained one (--backbone FOLDER) knows more",
    }
    epochs = f"{training.num_train_epochs:g} epochs" if training.max_steps <= 0 else f"{training.max_steps} steps at most"
    return [
        f"features: audio {features.audio}, vision {features.vision}, text {features.text}",
        f"adapter: {plan.config.model.adapter}",
        f"backbone: {notes.get(backbone, backbone)}",
        f"training: {plan.questions} questions, {training.per_device_train_batch_size} a step, {epochs}: about {plan.steps} "
        f"steps, on {training.device.type}",
    ]


def warnings_of(plan: Plan) -> list[str]:
    """What makes the result mean less than it seems to."""
    counts = Counter(plan.splits.names)
    found: list[str] = []
    if counts["test"] < FEW_TESTED:
        found.append(f"{counts['test']} test clips tell little: look at the intervals, not at the scores alone")
    if not counts["valid"]:
        found.append("no clip is kept for validation, so the last checkpoint is taken and not the best one")
    unknown = sum(utterance.speaker is None for utterance in plan.utterances)
    if unknown and plan.splits.drawn and any(utterance.audio or utterance.vision for utterance in plan.utterances):
        found.append(
            f"{unknown} of {len(plan.utterances)} clips name no speaker: the same voices and faces may be in training and "
            "test, and scores then tell how well people are answered who were learnt from; add a column speaker"
        )
    for target in plan.targets.learnt:
        if target.task.kind != "classification":
            continue
        by_split = count_labels(plan.utterances, plan.splits.names, target.task)
        for split in ("train", "test"):
            absent = [name for name in _seen(target) if name not in by_split[split]]
            if absent:
                found.append(f"{target.column!r}: no {split} clip is {', '.join(map(repr, absent))}")
    return found


def _seen(target: Target) -> Sequence[str]:
    """The labels that stand in the column."""
    task = target.task
    there = {task.label_names[task.class_index(cell.text)] for cell in target.cells if not task.ignores(cell.text)}
    return [name for name in task.label_names if name in there]
