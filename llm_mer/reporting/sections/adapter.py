"""What the adapter shows: gates by class, gates over a conversation, the feature space."""

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
from llm_mer.reporting.facts import Loaded, main_class_task
from llm_mer.reporting.wording import with_key

MAX_PARTS = 6
MAX_BARS = 60
MAX_TURNS = 30
MAX_POINTS = 1500


def grouping(main: Loaded) -> tuple[list[Prediction], list[str], list[str], str]:
    """Predictions whose diagnostics are shown, the class of each, the classes, and the word for them.

    Diagnostics belong to the utterance and the question; those of the first classification task are taken. With scores
    alone the sign of the truth is the class.
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


def info_of(main: Loaded, name: str, count: int) -> DiagnosticInfo:
    """What the evaluation's adapter says of a diagnostic of ``count`` components; without that its key and numbers."""
    found = next((info for info in main.evaluation.diagnostics if info.of_samples and info.name == name), None)
    if found is not None and len(found.parts) == count:
        return found
    numbers = tuple(str(i + 1) for i in range(count))
    return DiagnosticInfo(name, name, numbers) if found is None else dataclasses.replace(found, parts=numbers)


def vectors(predictions: Sequence[Prediction], name: str) -> np.ndarray | None:
    """A diagnostic of every prediction as ``(N, k)``; None where it is missing or is not one vector each."""
    rows = [np.asarray(p.diagnostics[name], dtype=np.float64) for p in predictions if name in p.diagnostics]
    if len(rows) < len(predictions) or not rows or rows[0].ndim != 1 or not len(rows[0]) or len({r.shape for r in rows}) > 1:
        return None
    return np.stack(rows)


def means(values: np.ndarray, group: Sequence[str], groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of ``(N, k)`` in each group: two ``(groups, k)``."""
    member = np.array(group)
    chosen = [values[member == name] for name in groups]
    return np.stack([c.mean(axis=0) for c in chosen]), np.stack([c.std(axis=0) for c in chosen])


def gate_section(main: Loaded) -> Section:
    """The adapter's diagnostics by class and by language, its weights and gates along a conversation too."""
    section = Section("gates", "Inside the adapter")
    known, names, classes, word = grouping(main)
    order = [info.name for info in main.evaluation.diagnostics]
    found = sorted({name for p in known for name in p.diagnostics} - {"features"})
    found.sort(key=lambda name: order.index(name) if name in order else len(order))
    spoken = [p.language for p in known]
    for name in found:
        values = vectors(known, name)
        if values is None or values.shape[1] > 40:
            continue
        info = info_of(main, name, values.shape[1])
        parts, title = plots.Names.of(info.parts, "part"), info.title
        level = 1 / values.shape[1] if values.shape[1] > 1 and np.allclose(values.sum(axis=1), 1, atol=1e-3) else None
        for what, group, groups in ((word, names, classes), ("language", spoken, main.languages)):
            groups = [g for g in groups if g in group]
            shown = plots.Names.of(groups)
            mean, spread = means(values, group, groups)
            counts = ", ".join(f"{g} {group.count(g)}" for g in groups)
            caption = f"{title} by {what}, n={len(known)} ({counts}): mean"
            if values.shape[1] > MAX_PARTS or mean.size > MAX_BARS:
                picture = plots.group_heat(shown.shown, parts.shown, mean)
                caption += "s."
            else:
                picture = plots.group_bars(shown.shown, parts.shown, mean, spread, title, level)
                caption += " and standard deviation over utterances."
                caption += " Dashed: equal weights." if level is not None else ""
            section.blocks.append(Picture(picture, with_key(with_key(caption, shown), parts)))
        if info.over_turns and values.shape[1] <= len(plots.PALETTE):
            line = conversation(known, values, parts, title)
            section.blocks += [line] if line is not None else []
    return section


def conversation(known: Sequence[Prediction], values: np.ndarray, parts: plots.Names, title: str) -> Picture | None:
    """The longest conversation's gates, turn by turn; None without one of three turns."""
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
    image = plots.turns(values[members], parts.shown, plots.Names.of(ticks, "turn").shown, title)
    caption = f"{title} along the longest conversation, {dialogue} ({language}), n={len(members)} turns."
    return Picture(image, with_key(caption, parts))


def feature_section(main: Loaded) -> Section:
    """Fused features in two dimensions, when the evaluation kept them."""
    section = Section("features", "Fused features")
    known, names, classes, word = grouping(main)
    values = vectors(known, "features")
    if values is None or len(values) < 8:
        return section
    from sklearn.manifold import TSNE

    seed = main.evaluation.seed
    chosen = np.arange(len(values))
    if len(values) > MAX_POINTS:
        chosen = np.sort(np.random.default_rng(seed).choice(len(values), MAX_POINTS, replace=False))
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(values[chosen])
    shown = plots.Names.of(classes)
    word_of = dict(zip(classes, shown.shown, strict=True))
    image = plots.embedding(points, [word_of[names[i]] for i in chosen], shown.shown, [known[i].language for i in chosen])
    caption = (
        f"t-SNE of the fused vectors ({values.shape[1]} dimensions), n={len(chosen)}, seed {seed}, perplexity "
        f"{perplexity:.0f}: colour by {word}, marker by language. Distances between far groups mean little."
    )
    section.blocks.append(Picture(image, with_key(caption, shown)))
    return section
