"""Adapter diagnostics: gates by class, gates over a conversation, the feature space."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from llm_mer.adapters.diagnostics import DiagnosticInfo
from llm_mer.evaluation.conditions import AS_IS
from llm_mer.evaluation.metrics import class_indices
from llm_mer.inference.prediction import Prediction
from llm_mer.reporting import plots
from llm_mer.reporting.blocks import Picture, Section
from llm_mer.reporting.facts import LoadedEvaluation, main_class_task
from llm_mer.reporting.wording import with_key

MAX_PARTS = 6
MAX_BARS = 60
MAX_TURNS = 30
MAX_POINTS = 1500


def group_by_class(main: LoadedEvaluation) -> tuple[list[Prediction], list[str], list[str], str]:
    """Predictions whose diagnostics are shown, the class of each, the classes, and a label for the grouping.

    Diagnostics belong to utterance and question; those of the first classification task are used. Without one, the sign of
    the true score is the class.
    """
    task = main_class_task(main)
    if task is not None:
        known = main.known(AS_IS, task.name)
        names = [task.label_names[i] for i in class_indices(task, [p.truth for p in known])]
        return known, names, [n for n in task.label_names if n in names], task.name
    known = main.known(AS_IS, main.tasks[0].name) if main.tasks else []
    words = {-1: "negative", 0: "zero", 1: "positive"}
    signs = [words[int(np.sign(float(p.truth)))] for p in known if p.truth is not None]
    return known, signs, [w for w in words.values() if w in signs], "sign of the true score"


def find_diagnostic_info(main: LoadedEvaluation, name: str, count: int) -> DiagnosticInfo:
    """The adapter's description of a diagnostic with ``count`` components; by default its key and numbers."""
    found = next((info for info in main.evaluation.diagnostics if info.of_samples and info.name == name), None)
    if found is not None and len(found.parts) == count:
        return found
    numbers = tuple(str(i + 1) for i in range(count))
    return DiagnosticInfo(name, name, numbers) if found is None else dataclasses.replace(found, parts=numbers)


def stack_diagnostic(predictions: Sequence[Prediction], name: str) -> np.ndarray | None:
    """A diagnostic of every prediction as ``(N, k)``; None if it is missing or not one vector each."""
    rows = [np.asarray(p.diagnostics[name], dtype=np.float64) for p in predictions if name in p.diagnostics]
    if len(rows) < len(predictions) or not rows or rows[0].ndim != 1 or not len(rows[0]) or len({r.shape for r in rows}) > 1:
        return None
    return np.stack(rows)


def group_statistics(values: np.ndarray, group: Sequence[str], groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of ``(N, k)`` in each group: two ``(groups, k)``."""
    member = np.array(group)
    by_group = [values[member == name] for name in groups]
    return np.stack([v.mean(axis=0) for v in by_group]), np.stack([v.std(axis=0) for v in by_group])


def gate_section(main: LoadedEvaluation) -> Section:
    """The adapter's diagnostics by class and by language, and its gates along a conversation."""
    section = Section("gates", "Inside the adapter")
    known, names, classes, class_label = group_by_class(main)
    order = [info.name for info in main.evaluation.diagnostics]
    found = sorted({name for p in known for name in p.diagnostics} - {"features"})
    found.sort(key=lambda name: order.index(name) if name in order else len(order))
    languages_of = [p.language for p in known]
    for name in found:
        values = stack_diagnostic(known, name)
        if values is None or values.shape[1] > 40:
            continue
        info = find_diagnostic_info(main, name, values.shape[1])
        parts, title = plots.PlotNames.of(info.parts, "part"), info.title
        level = 1 / values.shape[1] if values.shape[1] > 1 and np.allclose(values.sum(axis=1), 1, atol=1e-3) else None
        for label, group, groups in ((class_label, names, classes), ("language", languages_of, main.languages)):
            groups = [g for g in groups if g in group]
            shown = plots.PlotNames.of(groups)
            mean, spread = group_statistics(values, group, groups)
            counts = ", ".join(f"{g} {group.count(g)}" for g in groups)
            caption = f"{title} by {label}, n={len(known)} ({counts}): mean"
            if values.shape[1] > MAX_PARTS or mean.size > MAX_BARS:
                picture = plots.draw_group_heatmap(shown.shown, parts.shown, mean)
                caption += "s."
            else:
                picture = plots.draw_group_bars(shown.shown, parts.shown, mean, spread, title, level)
                caption += " and standard deviation over utterances."
                caption += " Dashed: equal weights." if level is not None else ""
            section.blocks.append(Picture(picture, with_key(with_key(caption, shown), parts)))
        if info.over_turns and values.shape[1] <= len(plots.PALETTE):
            line = conversation_picture(known, values, parts, title)
            section.blocks += [line] if line is not None else []
    return section


def conversation_picture(
    known: Sequence[Prediction], values: np.ndarray, parts: plots.PlotNames, title: str
) -> Picture | None:
    """The gates of the longest conversation by turn; None if it has fewer than three turns."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, prediction in enumerate(known):
        if prediction.dialogue_id is not None:
            groups.setdefault((prediction.language, prediction.dialogue_id), []).append(index)
    if not groups:
        return None
    (language, dialogue), members = max(sorted(groups.items()), key=lambda item: len(item[1]))
    if len(members) < 3:
        return None
    members = sorted(members, key=lambda i: known[i].turn or 0)[:MAX_TURNS]
    ticks = [f"{known[i].turn} {known[i].speaker or ''}: {known[i].truth}" for i in members]
    image = plots.draw_turns(values[members], parts.shown, plots.PlotNames.of(ticks, "turn").shown, title)
    caption = f"{title} along the longest conversation, {dialogue} ({language}), n={len(members)} turns."
    return Picture(image, with_key(caption, parts))


def feature_section(main: LoadedEvaluation) -> Section:
    """Fused features in two dimensions, if the evaluation kept them."""
    section = Section("features", "Fused features")
    known, names, classes, class_label = group_by_class(main)
    values = stack_diagnostic(known, "features")
    if values is None or len(values) < 8:
        return section
    from sklearn.manifold import TSNE

    seed = main.evaluation.seed
    sampled = np.arange(len(values))
    if len(values) > MAX_POINTS:
        sampled = np.sort(np.random.default_rng(seed).choice(len(values), MAX_POINTS, replace=False))
    perplexity = min(30.0, (len(sampled) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(values[sampled])
    shown = plots.PlotNames.of(classes)
    label_of_class = dict(zip(classes, shown.shown, strict=True))
    image = plots.draw_embedding(
        points, [label_of_class[names[i]] for i in sampled], shown.shown, [known[i].language for i in sampled]
    )
    caption = (
        f"t-SNE of the fused vectors ({values.shape[1]} dimensions), n={len(sampled)}, seed {seed}, perplexity "
        f"{perplexity:.0f}: colour by {class_label}, marker by language. Distances between far groups are not meaningful."
    )
    section.blocks.append(Picture(image, with_key(caption, shown)))
    return section
